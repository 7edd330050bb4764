"""deploy/rayjob.yaml, without Kubernetes: KubeRay's schema, and what its containers would run."""

import gzip
import json
import os
import shlex
from pathlib import Path
from typing import Any

import clusters
import pytest
import yaml
from jsonschema import Draft202012Validator
from processes import REPO

from analysis.results import read_trials

SCHEMA = os.environ.get("KUBERAY_SCHEMA", "")  # a ray.io_rayjobs.yaml.gz of KubeRay


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return yaml.safe_load((REPO / "deploy" / "rayjob.yaml").read_text())


@pytest.fixture(scope="module")
def cluster_spec(job) -> dict[str, Any]:
    return job["spec"]["rayClusterSpec"]


def forbid_unknown_fields(schema: dict[str, Any]) -> None:
    """Makes a schema of Kubernetes, which drops unknown fields silently, refuse them."""
    if "properties" in schema and "x-kubernetes-preserve-unknown-fields" not in schema:
        schema.setdefault("additionalProperties", False)
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("type", None)
        schema["type"] = ["integer", "string"]
    for inner in [*schema.get("properties", {}).values(), schema.get("items")]:
        if isinstance(inner, dict):
            forbid_unknown_fields(inner)


@pytest.mark.skipif(not Path(SCHEMA).is_file(), reason="needs KubeRay's schema at KUBERAY_SCHEMA")
def test_file_is_valid_for_kuberays_schema(job):
    text = gzip.decompress(Path(SCHEMA).read_bytes())
    versions = yaml.load(text, yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    schema["properties"]["metadata"] = {"type": "object"}
    forbid_unknown_fields(schema)
    assert [*Draft202012Validator(schema).iter_errors(job)] == []
    misspelled = json.loads(json.dumps(job))
    misspelled["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    assert [*Draft202012Validator(schema).iter_errors(misspelled)]  # so that this test can fail


def test_workers_are_launched_from_none_and_share_the_storage(job, cluster_spec):
    (workers,) = cluster_spec["workerGroupSpecs"]
    assert cluster_spec["enableInTreeAutoscaling"]
    assert (workers["replicas"], workers["minReplicas"]) == (0, 0)
    arguments = shlex.split(job["spec"]["entrypoint"])
    storage = arguments[arguments.index("--storage") + 1]
    images = set()
    for group in (cluster_spec["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        (mount,) = (m for m in container["volumeMounts"] if m["mountPath"] == storage)
        assert mount["name"] in [volume["name"] for volume in pod["volumes"]]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        images.add(container["image"])
    assert len(images) == 1
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_cluster_requires_the_token_and_lost_heads_are_retried(job, cluster_spec):
    assert cluster_spec["authOptions"]["mode"] == "token"
    assert job["spec"]["backoffLimit"] > 0


def test_image_has_the_version_of_ray_that_the_cluster_declares(cluster_spec):
    dockerfile = (REPO / "deploy" / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{cluster_spec['rayVersion']}-" in dockerfile


def start_flags(group: dict[str, Any]) -> list[str]:
    """Returns the flags of `ray start` that KubeRay makes of a group's rayStartParams."""
    return [f"--{name}={value}" for name, value in group["rayStartParams"].items()]


@pytest.mark.ray
def test_entrypoint_runs_on_a_cluster_with_these_start_parameters(job, cluster_spec, tmp_path):
    (workers,) = cluster_spec["workerGroupSpecs"]
    _, script, *flags = shlex.split(job["spec"]["entrypoint"])
    flags[flags.index("--storage") + 1] = str(tmp_path)
    flags += ["--cells", "rnn", "--lengths", "3", "--seeds", "0,1", "--epochs", "1"]
    flags += ["--num-sequences", "2000"]
    gpus = "--num-gpus=1"  # KubeRay takes it from the container's limits
    with (
        clusters.started(*start_flags(cluster_spec["headGroupSpec"])) as cluster,
        cluster.node(*start_flags(workers), gpus),
    ):
        resources = "[n['Resources'].get('CPU', 0) for n in ray.nodes()]"
        assert sorted(cluster.evaluate(f"print(json.dumps({resources}))")) == [0, 1]
        done = cluster.run(f"jobs/{Path(script).name}", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 concurrent trial" in done.stdout
    assert {trial.status for trial in read_trials(str(tmp_path / "figures"))} == {"finished"}
