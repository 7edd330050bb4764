"""What Ray's cluster launcher makes of cluster.yaml, found out with Ray's own code and no cloud."""

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
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli
from scripts import UNCOMPILED

tomllib = pytest.importorskip("tomllib")  # Python 3.10 has none

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "cluster.yaml").read_text()
HEADER = [line[1:] for line in takewhile(lambda line: line.startswith("#"), TEXT.splitlines())]
TOKEN = "~/.ray/auth_token"
EC2 = {"m5.large": {"CPU": 2}, "g4dn.xlarge": {"CPU": 4, "GPU": 1}}  # Amazon's figures


@pytest.fixture
def config():
    return prepare_config(yaml.safe_load(TEXT))


@pytest.fixture
def head(config):
    return config["available_node_types"][config["head_node_type"]]


@pytest.fixture
def worker(config):
    kinds = config["available_node_types"]
    (name,) = kinds.keys() - {config["head_node_type"]}
    return kinds[name]


@pytest.fixture
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_launcher_accepts_the_file(config):
    validate_config(config)


def test_workers_are_gpu_machines_from_none_to_four(config, worker):
    assert worker["resources"] == EC2[worker["node_config"]["InstanceType"]]
    assert worker["resources"]["GPU"] == 1
    assert (worker["min_workers"], worker["max_workers"], config["max_workers"]) == (0, 4, 4)
    assert config["upscaling_speed"] >= config["max_workers"]


def test_the_head_is_one_machine_without_gpu_that_runs_no_trial(config, head):
    assert "GPU" not in EC2[head["node_config"]["InstanceType"]]
    assert head["resources"] == {"CPU": 0}
    assert (head["min_workers"], head["max_workers"]) == (0, 0)
    assert "--autoscaling-config=" in config["head_start_ray_commands"][-1]


def test_workers_are_spot_and_the_head_is_not(head, worker):
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_a_container_that_cannot_see_the_gpu_does_not_start(config):
    docker = config["docker"]
    assert "--gpus all" in docker["worker_run_options"]
    on_the_head = docker["run_options"] + docker.get("head_run_options", [])
    assert not any("--gpus" in option for option in on_the_head)


def test_the_policy_of_the_header_is_what_the_head_needs_to_start_workers(worker):
    """The head hands its role to a worker, and looks up the machine image that the worker names."""
    (policy,) = re.findall(r"--policy-document '(.*?)'", "\n".join(HEADER), re.DOTALL)
    allowed = {rule["Action"]: rule["Resource"] for rule in json.loads(policy)["Statement"]}
    role = worker["node_config"]["IamInstanceProfile"]["Name"]
    assert f"--role-name {role} " in "\n".join(HEADER)
    image = worker["node_config"]["ImageId"].removeprefix("resolve:ssm:")
    asked = {
        "iam:PassRole": f"arn:aws:iam::123456789012:role/{role}",
        "ssm:GetParameters": f"arn:aws:ssm:us-west-2::parameter{image}",
    }
    assert allowed.keys() == asked.keys()
    for action, resource in asked.items():
        assert fnmatch.fnmatchcase(resource, allowed[action])


def test_what_is_mounted_is_what_pip_needs_and_nothing_else(config, project):
    needed = {
        "pyproject.toml",
        project["project"]["readme"],
        project["project"]["license"]["file"],
        *project["tool"]["setuptools"]["packages"],
    }
    suite = {f"~/suite/{name}": name for name in needed}
    assert config["file_mounts"] == {TOKEN: TOKEN, **suite}
    assert config["cluster_synced_files"] == []
    missing = [name for name in sorted(needed) if not (ROOT / name).exists()]
    assert not missing


def test_every_node_installs_every_file_of_the_packages(config, project, tmp_path):
    *common, install = config["setup_commands"]
    assert config["worker_setup_commands"] == [*common, install]
    more = config["head_setup_commands"][len(config["setup_commands"]) :]
    assert any("boto3" in command for command in more)  # the head starts machines with it

    suite, site = tmp_path / "home" / "suite", tmp_path / "site"
    del config["file_mounts"][TOKEN]
    for remote, local in config["file_mounts"].items():
        target = tmp_path / "home" / remote.removeprefix("~/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / local).is_dir():
            shutil.copytree(ROOT / local, target, ignore=UNCOMPILED)
        else:
            shutil.copy(ROOT / local, target)
    mounted = _files(suite)

    # The node's pip is this one, kept from the network and from the packages of this machine.
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
        assert _files(site / package) == _files(ROOT / package) != set()
    assert _files(suite) == mounted  # in a container, that folder cannot be written


def _files(folder: Path) -> set[Path]:
    return {
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_amazon_lets_the_world_in_by_ssh_alone(amazon, config, monkeypatch, tmp_path):
    """What Ray asks of AWS before it starts the head, asked of a server that stands in for it."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", config["provider"]["region"])
    monkeypatch.setenv("HOME", str(tmp_path))  # where it puts the key that it makes
    role = config["available_node_types"]["worker"]["node_config"]["IamInstanceProfile"]["Name"]
    iam = boto3.client("iam")  # which Ray makes, too, and then waits a quarter of a minute
    iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName=role)
    iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
    prepared = bootstrap_aws(config)
    groups = boto3.client("ec2").describe_security_groups()["SecurityGroups"]

    named = {group["GroupId"]: group for group in groups}
    for kind in prepared["available_node_types"].values():
        (group,) = kind["node_config"]["SecurityGroupIds"]
        rules = named[group]["IpPermissions"]
        from_outside = [rule for rule in rules if rule["IpRanges"] or rule["Ipv6Ranges"]]
        assert [(rule["FromPort"], rule["ToPort"]) for rule in from_outside] == [(22, 22)]
        assert len(kind["node_config"]["SubnetIds"]) == 3  # one in each zone


def test_the_dashboard_listens_on_the_head_alone(config):
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_all_nodes_run_one_image_whose_ray_and_python_the_project_allows(config, project):
    assert not {"head_image", "worker_image"} & config["docker"].keys()
    tag = re.fullmatch(r"rayproject/ray:([\d.]+)-py(\d)(\d+)-cu\d+", config["docker"]["image"])
    assert tag
    ray_version, major, minor = tag.groups()
    requirements = map(Requirement, project["project"]["dependencies"])
    (ray,) = [each for each in requirements if each.name == "ray"]
    assert ray.specifier.contains(ray_version)
    assert SpecifierSet(project["project"]["requires-python"]).contains(f"{major}.{minor}")


def test_the_commands_of_the_header_are_ones_that_can_be_typed(project):
    commands = [shlex.split(line, comments=True) for line in HEADER if line.startswith("   ray ")]
    names = [words[1] for words in commands]
    assert names == ["up", "submit", "submit", "submit", "rsync-down", "down"]
    for _, name, *rest in commands:
        given = cli.commands[name].make_context(name, list(rest)).params
        assert given["cluster_config_file"] == "cluster.yaml"
        for word in rest:
            if word.endswith((".yaml", ".py")):
                assert (ROOT / word).is_file()
        if name == "submit" and given["script"].startswith("jobs/"):
            assert "--storage" in given["script_args"]

    (extra,) = re.findall(r"pip install '\.\[(\w+)\]'", "\n".join(HEADER))
    assert extra in project["project"]["optional-dependencies"]
