"""The help of every script fits a screen and shows how to call it."""

from importlib import import_module

import pytest

SCRIPTS = [
    *("jobs.sweep", "jobs.gan"),
    *("analysis.trials", "analysis.sweep", "analysis.horizon", "analysis.gan", "analysis.report"),
    *("analysis.export", "analysis.compare"),
    *(
        "bench_sweep",
        "bench_gan",
        "bench_neighbor",
        "bench_scale",
        "bench_startup",
        "bench_variants",
        "soak",
        "public_gan",
    ),
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_fits_80_by_60_characters_and_has_an_example(call_main, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    done = call_main(import_module(name).main, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 60
    script = name.replace(".", "/") if "." in name else f"tests/{name}"
    assert f"python {script}.py" in done.stdout
