"""The notebooks run, and what is committed of them is what they are now."""

import contextlib
import os
from pathlib import Path

import jupytext
import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

pytestmark = pytest.mark.long
FOLDER = Path(__file__).parents[1] / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))
each = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


@contextlib.contextmanager
def kernel(folder, **variables):
    """A kernel of one thread that runs in a folder."""
    manager, client = start_new_kernel(cwd=folder, env={**os.environ, **variables})
    client.stop_channels()
    try:
        yield manager
    finally:
        manager.shutdown_kernel(now=True)


def run(source, manager):
    """Raises what a cell raises."""
    notebook = jupytext.read(source)
    afresh = "import torch\ntorch.set_default_dtype(torch.float32)\n%reset -f"  # the kernel may have run another one
    notebook.cells.insert(0, nbformat.v4.new_code_cell(afresh))
    NotebookClient(notebook, km=manager, timeout=600).execute()


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """One for all notebooks: half of their time would be imports."""
    with kernel(tmp_path_factory.mktemp("notebooks"), MSSSL_SHORT="1") as manager:
        yield manager


@each
def test_it_runs_in_short(source, short):
    run(source, short)


@pytest.mark.slow
@each
def test_it_runs_in_full(source, tmp_path):
    with kernel(tmp_path) as manager:
        run(source, manager)


@each
def test_the_committed_outputs_are_those_of_its_cells(source):
    path = source.with_suffix(".ipynb")
    written, committed = jupytext.read(source), nbformat.read(path, as_version=4)
    assert [(cell.cell_type, cell.source) for cell in committed.cells] == [
        (cell.cell_type, cell.source) for cell in written.cells
    ], "make notebooks"
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any(output.output_type == "display_data" for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]
    assert path.stat().st_size < 400_000


def test_there_are_six():
    assert len(SOURCES) == 6
