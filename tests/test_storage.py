"""jobs/storage.py: the folder of a run, its name, settings and lock, on a disk or in a bucket."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import storage, sweep
from jobs.errors import UserError
from jobs.grid import trial_configs, trial_name
from jobs.presets import PRESETS, recipes

QUICK = {
    "recipes": recipes(PRESETS["quick"], {}),
    "trials": {trial_name(config): config for config in trial_configs(*PRESETS["quick"].grids)},
}


def create_run(path: Path, name: str = "sweep") -> storage.StorageDir:
    """Creates the folder of a run with the settings of the preset `quick`."""
    folder = storage.run_dir(str(path), name, fresh=False)
    folder.filesystem.create_dir(folder.path)
    storage.lock_run_dir(folder)
    storage.write_settings(folder, "sweep", QUICK)
    return folder


@pytest.fixture
def read_only(tmp_path) -> Iterator[Path]:
    """An existing folder in which nothing can be created, not even by root."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a read-only file system")
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", str(tmp_path)]
    subprocess.run(mount, check=True)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        ("--preset quick --epochs 9", "epochs: 10 there, 9 here"),
        ("--preset quick --seeds 0-3,7 --grad-clip 1", "grad_clip: 10.0 there, 1.0 here"),
        ("--preset figures", "num_sequences: 20000 there, 100000 here"),
    ],
)
def test_other_settings_under_the_same_name_are_refused(user_error_of, tmp_path, flags, difference):
    create_run(tmp_path)
    error = user_error_of(sweep.main, *flags.split(), "--storage", tmp_path, "--name", "sweep")
    assert f"other settings ({difference})" in error


CORRUPT = ["[{", "[1]", "1", "{}", '{"sweep": 1}', '{"sweep": {"a": 1}}']
CORRUPT += ['{"sweep": {"recipes": [{}], "trials": {}}}', '{"sweep": {"recipes": 1, "trials": 2}}']


@pytest.mark.parametrize("content", CORRUPT)
def test_corrupt_settings_are_reported(user_error_of, tmp_path, content):
    folder = create_run(tmp_path)
    assert storage.read_settings(folder, "sweep") == QUICK
    folder.write(storage.SETTINGS, content.encode())
    flags = ["--preset", "quick", "--storage", tmp_path, "--name", "sweep"]
    assert "settings.json is corrupt (" in user_error_of(sweep.main, *flags)


def test_run_of_the_other_job_is_refused(user_error_of, tmp_path):
    folder = create_run(tmp_path)
    folder.write(storage.SETTINGS, b'{"gan": {"lr": 0.1}}')
    line = user_error_of(sweep.main, "--storage", tmp_path, "--name", "sweep")
    assert f"{folder.uri} holds a run of jobs/gan.py: use another --name" in line


def test_settings_that_cannot_be_read_for_a_moment_are_not_corrupt(tmp_path, monkeypatch):
    folder = create_run(tmp_path)

    def read(folder: storage.StorageDir, name: str) -> bytes:
        raise OSError("timeout")

    monkeypatch.setattr(storage.StorageDir, "read", read)
    with pytest.raises(OSError, match="timeout"):
        storage.read_settings(folder, "sweep")


@pytest.mark.parametrize("name", ["../../x", "a/b", "*", "~", ".", "..", "-x", ""])
def test_name_cannot_leave_the_storage_folder(tmp_path, name):
    with pytest.raises(UserError, match="a name consists of"):
        storage.run_dir(str(tmp_path), name, fresh=False)


def test_fresh_selects_a_new_folder_and_deletes_nothing(tmp_path):
    create_run(tmp_path, "sweep")
    assert storage.run_dir(str(tmp_path), "sweep", fresh=True).name == "sweep-2"
    create_run(tmp_path, "sweep-2")
    assert storage.run_dir(str(tmp_path), "sweep", fresh=True).name == "sweep-3"
    assert storage.run_dir(str(tmp_path), "sweep", fresh=False).name == "sweep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep", "sweep-2"]


def test_run_dir_is_locked_until_the_process_ends(tmp_path):
    folder = create_run(tmp_path)
    with pytest.raises(UserError, match="already running in another process"):
        storage.lock_run_dir(folder)


def test_storage_that_is_not_writable_is_refused(read_only):
    folder = storage.run_dir(str(read_only), "sweep", fresh=False)
    with pytest.raises(UserError, match=f"--storage: {folder.uri} is not writable"):
        storage.lock_run_dir(folder)
    with (
        pytest.raises(UserError, match=f"--storage: {read_only} is not writable"),
        storage.marker_file(folder),
    ):
        pass


def test_bucket_that_does_not_exist_is_refused(moto_server):
    folder = storage.run_dir("s3://nowhere/x", "sweep", fresh=False)
    with pytest.raises(UserError, match="--storage: s3://nowhere/x/sweep is not writable"):
        storage.write_settings(folder, "sweep", QUICK)


def test_marker_file_leaves_no_file_or_folder(tmp_path):
    folder = storage.run_dir(str(tmp_path / "a" / "b"), "sweep", fresh=False)
    with storage.marker_file(folder) as (path, content):
        assert Path(path).read_bytes() == content
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("parent", "options"),
    [
        ("/runs", ""),
        ("s3://bucket/runs", "?region=us-east-1&endpoint_override=localhost:1&scheme=http"),
    ],
)
def test_options_of_a_uri_stay_at_its_end(parent, options):
    folder = storage.open_dir(parent + options).subdir("sweep")
    assert folder.uri == f"{parent}/sweep{options}"
    assert (folder.name, folder.parent) == ("sweep", parent + options)
    assert folder.path == f"{parent}/sweep".removeprefix("s3://")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys, number):
    """As Lustre without flock and NFS without a lock server."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage.fcntl, "flock", flock)
    create_run(tmp_path)
    assert capsys.readouterr().out.startswith("no locks on this file system")


def test_run_whose_storage_cannot_be_asked_has_not_started_as_far_as_is_known(tmp_path):
    class Failing:
        def get_file_info(self, paths: list[str]) -> None:
            raise OSError("AWS Error NETWORK_CONNECTION")

    assert not storage.has_started(storage.StorageDir("s3://x", Failing(), "x"))


def test_home_directory_of_an_unknown_user_is_refused():
    with pytest.raises(UserError, match="--storage ~unknown/runs: there is no such home directory"):
        storage.run_dir("~unknown/runs", "sweep", fresh=False)
