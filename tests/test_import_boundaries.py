"""The packages import in one direction: models <- jobs, models <- analysis."""

import ast
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
FORBIDDEN_IMPORTS = {
    "models": {"ray", "pandas", "matplotlib", "jobs", "analysis", "argparse"},
    "jobs": {"matplotlib", "analysis"},
    "analysis": {"jobs"},
}
OPTIONAL = {"mlflow", "wandb"}  # extras of the same names in pyproject.toml


def imported_packages(file: Path) -> set[str]:
    """Returns the top-level packages that a file imports, also within functions."""
    packages = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add((node.module or "").split(".")[0])
    return packages


def imported_modules(file: Path, package: str) -> set[str]:
    """Returns the names of the modules of a package that a file imports."""
    dotted = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            dotted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            dotted |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in dotted if name.startswith(f"{package}.")}


def test_imported_modules_are_found_in_each_form(tmp_path):
    file = tmp_path / "file.py"
    file.write_text(
        "import analysis.a\nfrom analysis import (\n  b as c,\n  d,\n)\n"
        "def f():\n  from analysis.e import g\nimport json, os.path\n"
    )
    assert imported_modules(file, "analysis") == {"a", "b", "d", "e"}


@pytest.mark.parametrize("package", FORBIDDEN_IMPORTS)
def test_package_imports_nothing_forbidden(package):
    files = sorted((REPO / package).glob("**/*.py"))
    assert len(files) > 1
    for file in files:
        assert not imported_packages(file) & FORBIDDEN_IMPORTS[package], file.name


def test_analysis_starts_no_training():
    for file in (REPO / "analysis").glob("**/*.py"):
        words = set(re.findall(r"\w+", file.read_text()))
        assert not {"Tuner", "TorchTrainer", "train_epoch"} & words, file.name


def test_scripts_of_analysis_import_no_other_script():
    scripts = {
        file.stem for file in (REPO / "analysis").glob("*.py") if "__main__" in file.read_text()
    }
    assert {"sweep", "horizon", "gan", "trials", "report"} <= scripts
    for file in (REPO / "analysis").glob("*.py"):
        assert not imported_modules(file, "analysis") & scripts, file.name


def test_optional_packages_are_imported_by_one_file_when_they_are_used():
    for package in FORBIDDEN_IMPORTS:
        for file in {*(REPO / package).glob("**/*.py")} - {REPO / "analysis" / "trackers.py"}:
            assert not imported_packages(file) & OPTIONAL, file.name
    code = "import sys, analysis.export; print({'mlflow', 'wandb'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_only_one_file_imports_a_private_name_of_ray():
    """Any release may move it. This finds names with an underscore, not overridden methods."""
    for folder in (*FORBIDDEN_IMPORTS, "tests"):
        for file in {*(REPO / folder).glob("**/*.py")} - {REPO / "jobs" / "ray_internals.py"}:
            found = re.findall(r"\bray\.[\w.]*\b_[a-z]\w*|\bray\.scripts\b", file.read_text())
            assert not found, file.name


def test_every_imported_package_is_declared():
    all_requirements = requires("memory-and-digits")
    requirements = [text for text in all_requirements if "extra ==" not in text]
    declared = {re.match(r"[\w-]+", text)[0].lower() for text in requirements}
    distributions = {"PIL": "pillow", "grpc": "grpcio", "yaml": "pyyaml"}
    distributions["tensorboardX"] = "tensorboardx"
    for package in FORBIDDEN_IMPORTS:
        for file in (REPO / package).glob("**/*.py"):
            third_party = imported_packages(file) - sys.stdlib_module_names - {*FORBIDDEN_IMPORTS}
            required = {distributions.get(name, name) for name in third_party - OPTIONAL}
            assert required <= declared, file.name
    for name in OPTIONAL:
        assert any(f"extra == '{name}'" in text.replace('"', "'") for text in all_requirements)
