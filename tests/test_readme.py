"""The README's commands: quick ones are run; of the others, scripts and flags exist."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from clusters import RAY
from compat import oldest_versions
from packaging.version import Version
from processes import REPO

import analysis.gan
from models import gan

PROGRAMS = ("python", "ray", "make", "pip", "tune", "tensorboard", "sbatch", ".")
README = (REPO / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)  # (language, text)


def commands() -> list[str]:
    """Returns every command of the README, from its shell blocks and its prose."""
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S))
    lines = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]
    found = []
    for line in [*lines, *inline]:
        words = shlex.split(line, comments=True) if line.count("'") % 2 == 0 else []
        while words and re.fullmatch(r"\(?\w+=\S*|\(umask|077;", words[0]):
            words = words[1:]
        if words and re.fullmatch(r"(jobs|analysis|tests)/\w+\.py", words[0]) and words[1:]:
            line, words = f"python {line}", ["python", *words]
        mentioned = ["ray", "submit"], ["ray", "up"], ["ray", "dashboard"], ["ray", "job", "submit"]
        if len(words) > 1 and words[0] in PROGRAMS and words not in mentioned:
            found.append(line)
    return list(dict.fromkeys(found))


def words_of(line: str) -> list[str]:
    """Returns the words of a command, without the variables before it."""
    words = shlex.split(
        line.removeprefix("(umask 077;").replace(" > /dev/null)", ""), comments=True
    )
    return [word for word in words if not re.match(r"RAY_\w+=", word)]


@pytest.fixture
def home(tiny, gan_run, tmp_path, monkeypatch) -> Path:
    """A home with a sweep and a GAN in ray_results, which is also the working directory."""
    for name, run in {
        "figures": tiny,
        "figures-adam": tiny,
        "more-seeds": tiny,
        "horizon": tiny,
        "gan-report": gan_run,
        "gan-seed1": gan_run,
    }.items():
        shutil.copytree(run, tmp_path / "ray_results" / name)
    named = tmp_path / ".cache" / "torch" / "datasets" / "fashion-mnist"
    named.parent.mkdir(parents=True)
    for folder in (tmp_path / "images", named):
        folder.symlink_to(gan_run.parent / "dataset")
    for folder in ("jobs", "analysis", "deploy", "docs", "tests"):
        (tmp_path / folder).symlink_to(REPO / folder)
    monkeypatch.setattr(gan, "NUM_EVAL_SAMPLES", 200)  # no test reads these figures
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(words: list[str], home: Path, monkeypatch) -> None:
    """Runs a command if it takes seconds; otherwise checks that script and flags exist."""
    program, *arguments = words
    if program == "python" and arguments[0] != "-m":
        check_script(arguments, home, monkeypatch)
    elif program == "make":
        subprocess.run(["make", "-n", *arguments], cwd=REPO, check=True, capture_output=True)
    elif program == "ray":
        check_ray(arguments, home, monkeypatch)
    elif program == "sbatch":
        (batch,) = [word for word in arguments if word.endswith(".sbatch")]
        assert (home / batch).exists()
        check_script(arguments[arguments.index(batch) + 1 :], home, monkeypatch)
    elif program == "tune":
        done = subprocess.run(
            [Path(sys.executable).parent / "tune", *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "lstm" in done.stdout
    else:  # installation, and tensorboard, which is not part of the suite
        assert program in ("pip", "tensorboard", ".")


def check_script(words: list[str], home: Path, monkeypatch) -> None:
    script, *arguments = words
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    assert (home / script).exists()
    if script == "analysis/gan.py" and "--from" in arguments:
        analysis.gan.parse_args()  # this generator has trained too little to generate digits
    elif script.startswith("analysis/") and "://" not in " ".join(arguments):
        assert import_module(script.removesuffix(".py").replace("/", ".")).main() == 0
    elif script.startswith("jobs/"):
        import_module(script.removesuffix(".py").replace("/", ".")).parse_args()


def check_ray(words: list[str], home: Path, monkeypatch) -> None:
    """Parses the words with Ray's own command line; checks what it would run on the cluster."""
    end = words.index("--") if "--" in words else len(words)
    words, rest = words[:end], words[end + 1 :]
    # With --help, Ray parses all words, then prints its help instead of running the command.
    done = subprocess.run([RAY, *words, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # `ray submit` takes an unknown option for one of the script.
    options = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert options <= {*re.findall(r"--?[a-z][\w-]*", done.stdout.partition("\nOptions:\n")[2])}
    if words[0] == "submit":
        (script,) = [word for word in words if word.endswith(".py")]
        check_script([script, *rest], home, monkeypatch)
    elif rest:
        check(rest, home, monkeypatch)


@pytest.mark.parametrize("line", commands())
def test_readme_command_works(line, home, monkeypatch, capsys):
    words = [str(home) + w[1:] if w.startswith("~/") else w for w in words_of(line)]
    check(words, home, monkeypatch)


def test_readme_has_commands_of_every_program():
    programs = {words_of(line)[0] for line in commands()}
    assert programs == set(PROGRAMS)
    assert len(commands()) > 25


@pytest.mark.parametrize("code", [text for language, text in BLOCKS if language == "python"])
def test_readme_python_runs(code, home, capsys):
    exec(compile(code.replace("~", str(home)), "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_readme_file_tree_lists_every_module():
    (tree,) = [text for language, text in BLOCKS if language == "text"]
    folder, modules = Path(), set()
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = Path(name) if name.endswith("/") else Path()
            assert (REPO / name).exists(), name
        else:
            modules.add(folder / name)
    packages = [REPO / name for name in ("models", "jobs", "analysis")]
    files = {path.relative_to(REPO) for package in packages for path in package.glob("*.py")}
    assert modules == {path for path in files if path.name != "__init__.py"}


def anchors(page: Path) -> set[str]:
    """Returns the fragments of the headings of a page, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", prose, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_and_pictures_of_all_pages_exist():
    for page in [REPO / "README.md", *(REPO / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if "://" in target:
                continue
            name, _, fragment = target.partition("#")
            path = page.parent / name if name else page
            assert path.exists(), f"{page.name}: {target}"
            assert not fragment or fragment in anchors(path), f"{page.name}: {target}"


def test_lines_of_prose_have_at_most_100_characters():
    for page in [REPO / "README.md", *(REPO / "docs").glob("*.md")]:
        for number, line in enumerate(page.read_text().splitlines(), start=1):
            exempt = line.startswith(("|", "!")) or "](" in line
            assert exempt or len(line) <= 100, f"{page.name}:{number}"


def test_local_provider_example_is_valid_yaml():
    (text,) = [text for language, text in BLOCKS if language == "yaml"]
    assert yaml.safe_load(text).keys() == {"provider", "auth"}


def test_oldest_tested_versions_are_declared():
    packages, tested = (
        [cell.strip() for cell in re.search(row, README, re.M)[1].split("|")]
        for row in (r"^\| \| (torch .*) \|$", r"^\| oldest \| (.*) \|$")
    )
    declared = oldest_versions()
    assert packages == [*declared]
    assert [*map(Version, tested)] == [*map(Version, declared.values())]
