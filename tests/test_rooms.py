"""The three rooms and the arrows between them: models <- jobs, models <- analysis, none back."""

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
ROOMS = {
    "models": {"ray", "pandas", "matplotlib", "jobs", "analysis", "argparse"},
    "jobs": {"matplotlib", "analysis"},
    "analysis": {"jobs"},
}


def imports(file: Path) -> set[str]:
    """Returns the top-level packages that a file imports, also inside of its functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may_know(room):
    files = sorted((TOP / room).glob("**/*.py"))
    assert len(files) > 1
    for file in files:
        assert not imports(file) & ROOMS[room], file.name


def test_analysis_starts_no_training():
    for file in (TOP / "analysis").glob("**/*.py"):
        words = set(re.findall(r"\w+", file.read_text()))
        assert not {"Tuner", "TorchTrainer", "train_epoch"} & words, file.name
