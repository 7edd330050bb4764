"""docs/tour.ipynb runs from top to bottom, with the matplotlib backend that notebooks export.

python tests/test_tour.py    # renews the outputs that are kept in it
"""

import os
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from processes import REPO

TOUR = REPO / "docs" / "tour.ipynb"


def execute(folder: Path) -> NotebookNode:
    """Returns the notebook with its outputs; a cell that fails raises."""
    notebook = nbformat.read(TOUR, as_version=4)
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources)
    client.execute(env=environment)
    return notebook


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.ray
def test_tour_runs_from_top_to_bottom(tmp_path):
    found = outputs(execute(tmp_path))
    printed = "".join(output.get("text", "") for output in found)
    assert "6 of 6 trials done" in printed, printed
    assert "epoch 3: validation accuracy" in printed
    assert "2 of 2 epochs done" in printed, printed
    assert "Traceback" not in printed
    assert sum("image/png" in output.get("data", {}) for output in found) == 2
    assert (tmp_path / "report.html").exists()


def test_outputs_that_are_kept_are_small_and_of_no_machine():
    """They are renewed by `python tests/test_tour.py`."""
    notebook = nbformat.read(TOUR, as_version=4)
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) == 2
    text = TOUR.read_text()
    assert len(text) < 300_000
    assert "Traceback" not in text
    assert "/tmp/" not in text
    assert "/home/" not in text


def renew_outputs() -> None:
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(Path(folder))
        for cell in notebook.cells:
            cell.metadata = {}
            if cell.cell_type == "code":
                shortened = [shorten(output, folder) for output in cell.outputs]
                cell.outputs = [output for output in shortened if output]
        nbformat.write(notebook, TOUR)


def shorten(output: NotebookNode, folder: str) -> NotebookNode | None:
    """Returns an output without progress lines, second copies and paths of this machine."""
    if "data" in output:
        kinds = {"image/jpeg", "text/plain"} if len(output.data) > 1 else set()
        output.data = {kind: text for kind, text in output.data.items() if kind not in kinds}
        return output
    lines = [line.removesuffix("\r") for line in output.text.split("\n")]
    kept = [line for line in lines if not line.startswith(("\r", "\x1b[", "testing", "logs: "))]
    output.text = "\n".join(kept).replace(f"{folder}/", "")
    return output if output.text.strip() else None


if __name__ == "__main__":
    renew_outputs()
