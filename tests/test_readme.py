"""The README's commands: what takes seconds is run; of all else, scripts and flags are there."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest
import yaml
from ray.scripts.scripts import cli
from scripts import TOP

import analysis.gan
from models import gan

PROGRAMS = ("python", "ray", "make", "pip", "tune", "tensorboard", ".")
README = (TOP / "README.md").read_text()
BLOCKS = [
    block.replace("\n    ", "\n").strip() for block in re.findall(r"(?:^    .*\n)+", README, re.M)
]


def commands() -> list[str]:
    """Returns every command of the README, whether it stands in a block or in a line."""
    inline = re.findall(r"`([^`]+)`", README)
    lines = [line for block in BLOCKS if not is_python(block) for line in block.splitlines()]
    found = []
    for line in [*lines, *inline]:
        words = shlex.split(line, comments=True) if line.count("'") % 2 == 0 else []
        while words and re.fullmatch(r"\(?\w+=\S*|\(umask|077;", words[0]):
            words = words[1:]
        if words and re.fullmatch(r"(jobs|analysis|tests)/\w+\.py", words[0]) and words[1:]:
            line, words = f"python {line}", ["python", *words]
        named = ["ray", "submit"], ["ray", "down"]  # in a sentence
        if len(words) > 1 and words[0] in PROGRAMS and words not in named:
            found.append(line)
    return list(dict.fromkeys(found))


def is_python(block: str) -> bool:
    return block.startswith(("import ", "from "))


def words_of(line: str) -> list[str]:
    """Returns a command's words, without the variables that are set before it."""
    words = shlex.split(
        line.removeprefix("(umask 077;").replace(" > /dev/null)", ""), comments=True
    )
    return [word for word in words if not re.match(r"RAY_\w+=", word)]


@pytest.fixture
def home(tiny, gan_run, tmp_path, monkeypatch) -> Path:
    """A home whose ray_results has a sweep and a GAN's run, and which is the working folder."""
    for name, run in {
        "figures": tiny,
        "more-seeds": tiny,
        "horizon": tiny,
        "gan-report": gan_run,
    }.items():
        shutil.copytree(run, tmp_path / "ray_results" / name)
    (tmp_path / "fashion-mnist").symlink_to(gan_run.parent / "set")
    for folder in ("jobs", "analysis", "docs", "tests"):
        (tmp_path / folder).symlink_to(TOP / folder)
    monkeypatch.setattr(gan, "SAMPLES", 200)  # enough for figures that nobody looks at
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(words: list[str], home: Path, monkeypatch) -> None:
    """Runs a command if it takes seconds, else looks whether its script and its flags are there."""
    program, *arguments = words
    if program == "python" and arguments[0] != "-m":
        check_script(arguments, home, monkeypatch)
    elif program == "make":
        subprocess.run(["make", "-n", *arguments], cwd=TOP, check=True, capture_output=True)
    elif program == "ray":
        check_ray(arguments, home, monkeypatch)
    elif program == "tune":
        done = subprocess.run(
            [Path(sys.executable).parent / "tune", *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "lstm" in done.stdout
    else:  # what is installed, and tensorboard, which is not of the suite
        assert program in ("pip", "tensorboard", ".")


def check_script(words: list[str], home: Path, monkeypatch) -> None:
    script, *arguments = words
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    assert (home / script).exists()
    if script == "analysis/gan.py" and "--from" in arguments:
        analysis.gan.parser().parse_args(arguments)  # the generator is too young to draw digits
    elif script.startswith("analysis/") and "s3://" not in " ".join(arguments):
        assert import_module(script.removesuffix(".py").replace("/", ".")).main() == 0
    elif script.startswith("jobs/"):
        import_module(script.removesuffix(".py").replace("/", ".")).settings()


def check_ray(words: list[str], home: Path, monkeypatch) -> None:
    """Has Ray's own command line read the words; looks at what it would start on the cluster."""
    arguments, _, rest = " ".join(map(shlex.quote, words)).partition(" -- ")
    command: click.Command = cli
    words = shlex.split(arguments)
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
        assert command is not None
    context = click.Context(command, ignore_unknown_options=False)
    read, _, _ = command.make_parser(context).parse_args([*words, *(["x"] if rest else [])])
    started = shlex.split(rest)
    if "script" in read:
        script = read["script"] or words[1]
        check_script([script, *started], home, monkeypatch)
    elif started:
        check(started, home, monkeypatch)


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_readme_works(line, home, monkeypatch, capsys):
    words = [str(home) + w[1:] if w.startswith("~/") else w for w in words_of(line)]
    check(words, home, monkeypatch)


def test_the_readme_has_commands_of_each_kind():
    programs = {words_of(line)[0] for line in commands()}
    assert programs == set(PROGRAMS)
    assert len(commands()) > 25


@pytest.mark.parametrize("block", [block for block in BLOCKS if is_python(block)])
def test_the_readmes_python_runs(block, home, capsys):
    exec(compile(block.replace("~", str(home)), "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_links_and_pictures_of_the_readme_and_the_pages_are_there():
    for page in [TOP / "README.md", *(TOP / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_what_stands_for_machines_of_ones_own_is_read_as_yaml():
    (block,) = [block for block in BLOCKS if block.startswith("provider:")]
    assert yaml.safe_load(block).keys() == {"provider", "auth"}
