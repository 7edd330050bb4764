"""cluster.yaml as Ray's cluster launcher reads it, by Ray's own code and without a cloud."""

import copy
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
from clusters import RAY
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from processes import IGNORE_PYCACHE, REPO
from ray.autoscaler.sdk import bootstrap_config

from jobs import autoscaling

tomllib = pytest.importorskip("tomllib")  # Python 3.10 has none

TEXT = (REPO / "cluster.yaml").read_text()
HEADER = [line[1:] for line in takewhile(lambda line: line.startswith("#"), TEXT.splitlines())]
TOKEN = "~/.ray/auth_token"
EC2 = {"m5.large": {"CPU": 2}, "g4dn.xlarge": {"CPU": 4, "GPU": 1}}  # resources, by AWS


ON_PREMISES = """
cluster_name: lab
provider: {type: local, head_ip: 192.0.2.1, worker_ips: [192.0.2.2, 192.0.2.3]}
auth: {ssh_user: me}
"""


def bootstrap(text: str) -> dict:
    """Returns a configuration as `ray up` checks it, completes it and sends it to the head.

    For AWS, it creates there what the head needs.
    """
    return bootstrap_config(yaml.safe_load(text), no_config_cache=True)


@pytest.fixture(scope="module")
def bootstrapped(moto_server, tmp_path_factory):
    with pytest.MonkeyPatch.context() as environment:
        # Ray writes its ssh key there.
        environment.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        written = yaml.safe_load(TEXT)
        environment.setenv("AWS_DEFAULT_REGION", written["provider"]["region"])
        worker = written["available_node_types"]["worker"]
        role = worker["node_config"]["IamInstanceProfile"]["Name"]
        iam = boto3.client("iam")  # otherwise Ray creates the role, then waits 15 s
        iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName=role)
        iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
        return bootstrap(TEXT)


@pytest.fixture
def config(bootstrapped):
    return copy.deepcopy(bootstrapped)


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


def test_launcher_accepts_the_file_and_no_unknown_key(config):
    assert config["cluster_name"] == "memory-and-digits"
    bootstrap(ON_PREMISES)
    with pytest.raises(Exception, match="'max_wrokers' was unexpected"):
        bootstrap(ON_PREMISES + "max_wrokers: 1")


def test_cluster_has_zero_to_four_gpu_workers(config, worker):
    assert worker["resources"].items() >= EC2[worker["node_config"]["InstanceType"]].items()
    assert worker["resources"]["GPU"] == 1
    assert (worker["min_workers"], worker["max_workers"], config["max_workers"]) == (0, 4, 4)
    assert config["upscaling_speed"] >= config["max_workers"]


def test_head_has_no_gpu_and_runs_no_trials(config, head):
    assert "GPU" not in EC2[head["node_config"]["InstanceType"]]
    assert head["resources"] == {"CPU": 0}
    assert (head["min_workers"], head["max_workers"]) == (0, 0)
    assert "--autoscaling-config=" in config["head_start_ray_commands"][-1]


def test_jobs_know_the_nodes_that_the_cluster_can_launch(config):
    nodes = autoscaling._nodes_of(config)
    assert [(node["CPU"], node["GPU"]) for node in nodes] == [(4, 1)] * 4


def test_launchable_nodes_are_unknown_on_premises():
    """With provider `local`, the resources of a node are known after it has joined."""
    assert autoscaling._nodes_of(bootstrap(ON_PREMISES)) is None


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


def test_only_ssh_is_open_to_the_internet(config):
    ec2 = boto3.client("ec2", region_name=config["provider"]["region"])
    groups = ec2.describe_security_groups()["SecurityGroups"]
    by_id = {group["GroupId"]: group for group in groups}
    for node_type in config["available_node_types"].values():
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


def test_commands_of_the_header_are_valid(project, tmp_path, monkeypatch):
    """Without a cluster.yaml, Ray parses a command, then fails to open the file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    commands = [shlex.split(line, comments=True) for line in HEADER if line.startswith("   ray ")]
    names = [words[1] for words in commands]
    assert names == ["up", "submit", "submit", "submit", "rsync-down", "down"]
    for _, name, *rest in commands:
        done = subprocess.run([RAY, name, *rest], capture_output=True, text=True)
        assert done.returncode == 1, done.stderr  # 2: wrong usage
        assert re.search(r"(No such file|does not exist)", done.stderr.splitlines()[-1])
        assert "cluster.yaml" in done.stdout + done.stderr
        for word in rest:
            if word.endswith((".yaml", ".py")):
                assert (REPO / word).is_file()
        if name == "submit" and rest[1].startswith("jobs/"):
            assert "--storage" in rest[rest.index("--") :]

    (extra,) = re.findall(r"pip install -e '\.\[(\w+)\]'", "\n".join(HEADER))
    assert extra in project["project"]["optional-dependencies"]
