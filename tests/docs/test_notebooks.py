"""The notebooks run from beginning to end, and hold no outputs."""

import json

import nbformat
import pytest
from doc_pages import ROOT, name
from nbclient import NotebookClient

NOTEBOOKS = sorted(ROOT.glob('examples/*.ipynb'))


@pytest.mark.slow
def test_notebooks_run_one_after_another(user_folder):
    """In one process: most of its time goes into imports. Names do not outlive a notebook."""
    cells = []
    for path in NOTEBOOKS:
        cells += [*nbformat.read(path, 4).cells, nbformat.v4.new_code_cell('%reset -f')]
    for number, cell in enumerate(cells):
        cell['id'] = f'cell-{number}'
    whole = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(whole, timeout=300, startup_timeout=300, kernel_name='python3')
    client.execute(cwd=str(user_folder))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_a_notebook_holds_no_outputs(path):
    for cell in json.loads(path.read_text())['cells']:
        assert (
            cell['cell_type'] == 'markdown' or not cell['outputs'] and not cell['execution_count']
        )


def test_the_examples_are_listed():
    listed = (ROOT / 'examples' / 'README.md').read_text()
    assert len(NOTEBOOKS) == 2 and all(f'({path.name})' in listed for path in NOTEBOOKS)
