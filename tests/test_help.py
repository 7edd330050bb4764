"""The help of every script: a screen of 80 columns that says how it is called."""

from importlib import import_module

import pytest

SCRIPTS = [
    *("jobs.sweep", "jobs.gan"),
    *("analysis.trials", "analysis.sweep", "analysis.horizon"),
    *("analysis.gan", "analysis.report", "analysis.scale"),
    *("bench_sweep", "bench_gan", "bench_scale", "soak"),
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_help_fits_a_screen_and_has_an_example(called, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    done = called(import_module(name).main, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 60
    script = name.replace(".", "/") if "." in name else f"tests/{name}"
    assert f"python {script}.py" in done.stdout
