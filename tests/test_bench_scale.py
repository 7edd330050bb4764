import bench_scale
import pandas as pd
import pytest
from processes import REPO

MEASURED = pd.DataFrame(
    {
        "trials": [10, 100, 200],
        "driver_cpu_seconds_per_trial": [9.0, 0.1, 0.2],
        "state_bytes_per_trial": [500, 1000, 1000],
        "bytes_on_storage_per_trial": [0, 0, 2_000_000],
    }
)


def test_extrapolation_follows_the_line_through_the_two_largest_sweeps():
    found = bench_scale.extrapolate(MEASURED, "driver_cpu_seconds_per_trial", 1000)
    assert found == pytest.approx(1.0)
    assert bench_scale.extrapolate(MEASURED, "state_bytes_per_trial", 1000) == 1000


def test_estimate_of_a_small_example():
    table = bench_scale.estimate(MEASURED, trials=1000, slots=10, minutes=6)
    assert dict(table.set_index("estimate")["1,000 trials"]) == {
        "hours without overhead": "10.0",  # 100 trials in a row in each slot
        "concurrent trials": "10",
        "driver CPU seconds per trial": "1.00",
        "driver load (fraction of one core)": "3%",  # 1,000 of 36,000 s
        "concurrent trials that saturate the driver": "360",  # one ends every second
        "Tune snapshot, rewritten each time (MB)": "1",
        "final size on storage (GB)": "2.0",
        "written per second without old checkpoints (MB)": "0.06",
    }


def test_docs_show_the_printed_estimate(call_main):
    done = call_main(bench_scale.main, REPO / "docs" / "scale.csv", "--estimate")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 9
    assert done.stdout in (REPO / "docs" / "scale.md").read_text()


@pytest.mark.parametrize("flag", ["--trials", "--slots", "--minutes"])
def test_estimates_for_nothing_are_refused(call_main, flag):
    done = call_main(bench_scale.main, REPO / "docs" / "scale.csv", "--estimate", flag, 0)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("--trials, --slots and --minutes must be positive\n")
