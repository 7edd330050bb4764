"""analysis/scale.py: the plan for many trials, from measurements of few."""

import pandas as pd
import pytest
from scripts import TOP

from analysis import scale
from analysis.scale import at, plan

MEASURED = pd.DataFrame(
    {
        "trials": [10, 100, 200],
        "driver_cpu_seconds_per_trial": [9.0, 0.1, 0.2],
        "state_bytes_per_trial": [500, 1000, 1000],
        "bytes_on_storage_per_trial": [0, 0, 2_000_000],
    }
)


def test_it_goes_on_along_the_line_through_the_two_largest_sweeps():
    assert at(MEASURED, "driver_cpu_seconds_per_trial", 1000) == pytest.approx(1.0)
    assert at(MEASURED, "state_bytes_per_trial", 1000) == 1000


def test_the_plan_is_arithmetic():
    found = plan(MEASURED, trials=1000, slots=10, minutes=6).set_index("what")["1,000 trials"]
    assert dict(found) == {
        "hours, were nothing lost": "10.0",  # 100 trials in a row of each slot
        "trials at a time": "10",
        "driver's CPU seconds per trial": "1.00",
        "of one core, in use by the driver": "3%",  # 1,000 of 36,000 s
        "trials at a time that fill the driver": "360",  # one ends every second
        "Tune's snapshot, written anew each time (MB)": "1",
        "on storage in the end (GB)": "2.0",
        "written per second, old checkpoints not counted (MB)": "0.06",
    }


def test_the_page_has_what_the_command_prints(called):
    done = called(scale.main, TOP / "docs" / "scale.csv")
    assert done.returncode == 0, done.stderr
    page = (TOP / "docs" / "scale.md").read_text()
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert len(lines) == 9
    assert [line for line in lines if line not in page] == []


def test_a_table_that_is_none_is_told_in_one_line(called, tmp_path):
    for text, told in ((None, "No such file"), ("a,b\n1,2\n", "trials"), ("", "No columns")):
        table = tmp_path / "table.csv"
        if text is not None:
            table.write_text(text)
        done = called(scale.main, table)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert told in line


@pytest.mark.parametrize("flag", ["--trials", "--slots", "--minutes"])
def test_a_plan_for_nothing_is_refused(called, flag):
    done = called(scale.main, TOP / "docs" / "scale.csv", flag, 0)
    assert done.returncode == 2
    assert done.stderr.endswith("--trials, --slots and --minutes: must be more than 0\n")
