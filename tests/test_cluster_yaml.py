"""cluster.yaml as Ray's cluster launcher reads it, by Ray's own code and without a cloud."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import boto3
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from processes import IGNORE_PYCACHE, REPO
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli

tomllib = pytest.importorskip("tomllib")  # Python 3.10 has none

TEXT = (REPO / "cluster.yaml").read_text()
HEADER = [line[1:] for line in takewhile(lambda line: line.startswith("#"), TEXT.splitlines())]
TOKEN = "~/.ray/auth_token"
EC2 = {"m5.large": {"CPU": 2}, "g4dn.xlarge": {"CPU": 4, "GPU": 1}}  # resources, by AWS


@pytest.fixture
def config():
    return prepare_config(yaml.safe_load(TEXT))


@pytest.fixture
def head(config):
    return config["available_node_types"][config["head_node_type"]]


@pytest.fixture
def worker(config):
    node_types = config["available_node_types"]
    (name,) = node_types.keys() - {config["head_node_type"]}
    return node_types[name]


@pytest.fixture
def project():
    return tomllib.loads((REPO / "pyproject.toml").read_text())


def test_launcher_accepts_the_file(config):
    validate_config(config)


def test_cluster_has_zero_to_four_gpu_workers(config, worker):
    assert worker["resources"] == EC2[worker["node_config"]["InstanceType"]]
    assert worker["resources"]["GPU"] == 1
    assert (worker["min_workers"], worker["max_workers"], config["max_workers"]) == (0, 4, 4)
    assert config["upscaling_speed"] >= config["max_workers"]


def test_head_has_no_gpu_and_runs_no_trials(config, head):
    assert "GPU" not in EC2[head["node_config"]["InstanceType"]]
    assert head["resources"] == {"CPU": 0}
    assert (head["min_workers"], head["max_workers"]) == (0, 0)
    assert "--autoscaling-config=" in config["head_start_ray_commands"][-1]


def test_only_workers_are_spot_instances(head, worker):
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_worker_container_requires_a_gpu(config):
    docker = config["docker"]
    assert "--gpus all" in docker["worker_run_options"]
    head_options = docker["run_options"] + docker.get("head_run_options", [])
    assert not any("--gpus" in option for option in head_options)


def test_iam_policy_of_the_header_allows_the_head_to_start_workers(worker):
    """The head passes its role to a worker and looks up the worker's machine image."""
    (policy,) = re.findall(r"--policy-document '(.*?)'", "\n".join(HEADER), re.DOTALL)
    allowed = {rule["Action"]: rule["Resource"] for rule in json.loads(policy)["Statement"]}
    role = worker["node_config"]["IamInstanceProfile"]["Name"]
    assert f"--role-name {role} " in "\n".join(HEADER)
    image = worker["node_config"]["ImageId"].removeprefix("resolve:ssm:")
    needed = {
        "iam:PassRole": f"arn:aws:iam::123456789012:role/{role}",
        "ssm:GetParameters": f"arn:aws:ssm:us-west-2::parameter{image}",
    }
    assert allowed.keys() == needed.keys()
    for action, resource in needed.items():
        assert fnmatch.fnmatchcase(resource, allowed[action])


def test_mounts_are_exactly_what_pip_needs(config, project):
    needed = {
        "pyproject.toml",
        project["project"]["readme"],
        project["project"]["license"]["file"],
        *project["tool"]["setuptools"]["packages"],
    }
    suite = {f"~/suite/{name}": name for name in needed}
    assert config["file_mounts"] == {TOKEN: TOKEN, **suite}
    assert config["cluster_synced_files"] == []
    missing = [name for name in sorted(needed) if not (REPO / name).exists()]
    assert not missing


def test_every_node_installs_every_file_of_the_packages(config, project, tmp_path):
    *common, install = config["setup_commands"]
    assert config["worker_setup_commands"] == [*common, install]
    head_only = config["head_setup_commands"][len(config["setup_commands"]) :]
    assert any("boto3" in command for command in head_only)  # to start instances

    suite, site = tmp_path / "home" / "suite", tmp_path / "site"
    del config["file_mounts"][TOKEN]
    for remote, local in config["file_mounts"].items():
        target = tmp_path / "home" / remote.removeprefix("~/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if (REPO / local).is_dir():
            shutil.copytree(REPO / local, target, ignore=IGNORE_PYCACHE)
        else:
            shutil.copy(REPO / local, target)
    mounted = _files(suite)

    # The node's pip is that of this machine, without its network and its installed packages.
    pip = tmp_path / "bin" / "pip"
    pip.parent.mkdir()
    options = ["--no-deps", "--no-build-isolation", "--no-compile", "--target", str(site)]
    pip.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pip "$@" {shlex.join(options)}\n'
    )
    pip.chmod(0o755)
    path = f"{pip.parent}{os.pathsep}{os.environ['PATH']}"
    home = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path), "PATH": path}
    done = subprocess.run(
        ["bash", "-c", install], env=os.environ | home, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr
    for package in project["tool"]["setuptools"]["packages"]:
        assert _files(site / package) == _files(REPO / package) != set()
    assert _files(suite) == mounted  # a container cannot write there


def _files(folder: Path) -> set[Path]:
    return {
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_only_ssh_is_open_to_the_internet(moto_server, config, monkeypatch, tmp_path):
    """Runs Ray's requests to AWS before the start of the head, against a local AWS server."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", config["provider"]["region"])
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes its ssh key there
    role = config["available_node_types"]["worker"]["node_config"]["IamInstanceProfile"]["Name"]
    iam = boto3.client("iam")  # otherwise Ray creates the role, then waits 15 s
    iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName=role)
    iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
    prepared = bootstrap_aws(config)
    groups = boto3.client("ec2").describe_security_groups()["SecurityGroups"]

    by_id = {group["GroupId"]: group for group in groups}
    for node_type in prepared["available_node_types"].values():
        (group,) = node_type["node_config"]["SecurityGroupIds"]
        rules = by_id[group]["IpPermissions"]
        public = [rule for rule in rules if rule["IpRanges"] or rule["Ipv6Ranges"]]
        assert [(rule["FromPort"], rule["ToPort"]) for rule in public] == [(22, 22)]
        assert len(node_type["node_config"]["SubnetIds"]) == 3  # one in each zone


def test_dashboard_listens_on_localhost(config):
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_all_nodes_use_one_image_with_supported_ray_and_python(config, project):
    assert not {"head_image", "worker_image"} & config["docker"].keys()
    tag = re.fullmatch(r"rayproject/ray:([\d.]+)-py(\d)(\d+)-cu\d+", config["docker"]["image"])
    assert tag
    ray_version, major, minor = tag.groups()
    requirements = map(Requirement, project["project"]["dependencies"])
    (ray,) = [r for r in requirements if r.name == "ray"]
    assert ray.specifier.contains(ray_version)
    assert SpecifierSet(project["project"]["requires-python"]).contains(f"{major}.{minor}")


def test_commands_of_the_header_are_valid(project):
    commands = [shlex.split(line, comments=True) for line in HEADER if line.startswith("   ray ")]
    names = [words[1] for words in commands]
    assert names == ["up", "submit", "submit", "submit", "rsync-down", "down"]
    for _, name, *rest in commands:
        params = cli.commands[name].make_context(name, list(rest)).params
        assert params["cluster_config_file"] == "cluster.yaml"
        for word in rest:
            if word.endswith((".yaml", ".py")):
                assert (REPO / word).is_file()
        if name == "submit" and params["script"].startswith("jobs/"):
            assert "--storage" in params["script_args"]

    (extra,) = re.findall(r"pip install '\.\[(\w+)\]'", "\n".join(HEADER))
    assert extra in project["project"]["optional-dependencies"]
