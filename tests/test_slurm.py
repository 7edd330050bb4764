"""deploy/slurm.sbatch on two nodes: jobs that are stopped, fail or are cancelled."""

import netns_hosts
import pytest
import slurm_cluster
from netns_hosts import SHARED
from processes import wait_for

from analysis.results import ResultsError, Trial, read_trials

pytestmark = [pytest.mark.ray, netns_hosts.needs_hosts, slurm_cluster.needs_slurm]

SWEEP = "jobs/sweep.py --cells lstm --lengths 20 --seeds 0,1 --epochs 12 --num-sequences 8000"
COLUMNS = ("epoch", "train_loss", "val_loss", "val_accuracy")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm"), "one", "two") as slurm:
        yield slurm


@pytest.fixture(scope="module")
def failing_and_waiting(slurm):
    """Two jobs on one node each: a sweep with invalid arguments, and a script that waits."""
    script = slurm.shared / "suite" / "wait.py"
    script.write_text("import time\nprint('waiting', flush=True)\ntime.sleep(3600)\n")
    failing = slurm.submit("--nodes 1", "jobs/sweep.py --lengths three")
    waiting = slurm.submit("--nodes 1", "wait.py")
    wait_for(lambda: "waiting" in waiting.log, every=0.5)
    return failing, waiting


def trials(slurm: slurm_cluster.Slurm, name: str) -> list[Trial]:
    try:
        return read_trials(str(slurm.shared / "runs" / name))
    except ResultsError:
        return []


def results(slurm: slurm_cluster.Slurm, name: str) -> dict[str, list[tuple]]:
    return {
        trial.name: [tuple(row[column] for column in COLUMNS) for row in trial.rows]
        for trial in trials(slurm, name)
    }


def rows(slurm: slurm_cluster.Slurm, name: str) -> list[dict]:
    return [row for trial in trials(slurm, name) for row in trial.rows]


def test_preempted_and_timed_out_sweep_resumes_with_identical_results(slurm):
    job = slurm.submit("--nodes 2", f"{SWEEP} --storage {SHARED}/runs --name stopped")
    addresses = {node.address for node in slurm.nodes}
    wait_for(lambda: {r["node_ip"] for r in rows(slurm, "stopped")} == addresses, every=0.2)
    job.command("scontrol requeue")  # as at preemption
    wait_for(lambda: job.state()[:2] == ("RUNNING", 1), every=0.5)
    before = len(rows(slurm, "stopped"))
    wait_for(lambda: len(rows(slurm, "stopped")) > before, every=0.2)
    job.command("scancel --batch --signal TERM")  # as --signal does before the time limit
    assert job.wait_for_end() == ("COMPLETED", 2, "0"), job.log
    assert "2 of 2 trials done" in job.log
    assert any(row["resumed_from_epoch"] for row in rows(slurm, "stopped"))

    slurm.net["client"].check_output(
        f"cd {slurm.suite} && .venv/bin/python {SWEEP} --storage {SHARED}/runs --name whole"
    )
    assert results(slurm, "stopped") == results(slurm, "whole")


def test_cluster_of_a_job_rejects_clients_without_its_token(slurm, failing_and_waiting):
    _, waiting = failing_and_waiting
    command = "HOME=/tmp PYTHONPATH=. python jobs/sweep.py --storage /tmp"
    rejected = slurm.net["client"].run(f"{command} --address {waiting.first_address()}:6379")
    assert rejected.returncode == 2
    assert "requires a token" in rejected.stdout


def test_failed_and_cancelled_jobs_are_not_requeued(failing_and_waiting):
    failing, waiting = failing_and_waiting
    assert failing.wait_for_end() == ("FAILED", 0, "2"), failing.log
    assert "sweep.py: argument --lengths" in failing.log
    waiting.command("scancel")
    assert waiting.wait_for_end()[:2] == ("CANCELLED", 0), waiting.log
