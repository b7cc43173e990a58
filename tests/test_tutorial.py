"""The tutorial runs, its assertions hold, and its committed outputs are those of its code.

After a change of the notebook or of the bundled model, write its outputs again:

    python tests/test_tutorial.py
"""

import ast
import importlib
import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "tutorial.ipynb"
PACKAGES = ("agents", "text_sentiment_env")
LARGEST = 600_000  # bytes of the notebook, figures included


def code_cells():
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def kinds(cell):
    """What a cell puts out: the streams and the types of what is displayed."""
    return [
        output.get("name") or sorted(output["data"])
        for output in cell["outputs"]
        if output["output_type"] != "error"
    ]


def execute(folder):
    """The notebook, executed in a folder with the packages of this checkout."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    quiet = "ignore:IProgress not found"  # of tqdm, where there is no ipywidgets
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,  # however slowly a cell prints
    )
    backend = "module://matplotlib_inline.backend_inline"
    variables = {"PYTHONPATH": path, "PYTHONWARNINGS": quiet, "MPLBACKEND": backend}
    client.execute(env={**os.environ, **variables})
    return notebook


def test_cells_use_names_that_the_packages_have():
    objects = {}
    for cell in code_cells():
        tree = ast.parse(source(cell))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PACKAGES:
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert not name.name.startswith("_")
                    objects[name.asname or name.name] = getattr(module, name.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in objects:
                assert hasattr(objects[ast.unparse(node.value)], node.attr), ast.unparse(node)
    assert {"GPT2", "REINFORCE", "GPT2Policy", "SB3VecEnv", "load_sentiment_model"} <= set(objects)


def test_every_section_asserts_what_it_claims():
    sections = []
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    for cell in cells:
        if source(cell).startswith("## "):
            sections.append(0)
        elif cell["cell_type"] == "code" and sections:
            tree = ast.parse(source(cell))
            sections[-1] += any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    assert len(sections) == 8
    assert min(sections) >= 1


def test_committed_outputs():
    """All cells were executed in order; no error, no warning, no path of a machine, nothing large."""
    assert NOTEBOOK.stat().st_size < LARGEST
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        calls = [ast.unparse(statement) for statement in ast.parse(source(cell)).body]
        if any(call.startswith(("print(", "show(", "plt.show(")) for call in calls):
            assert cell["outputs"], source(cell)
        assert "error" not in [output["output_type"] for output in cell["outputs"]]
        assert "stderr" not in kinds(cell), source(cell)
        for output in cell["outputs"]:
            text = "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
            assert not re.search(r"(?<![\w.])/\w+/|[A-Z]:\\", text), text
    figures = [cell for cell in cells if ["image/png", "text/plain"] in kinds(cell)]
    assert len(figures) == sum("plt.show()" in source(cell) for cell in cells)


@pytest.mark.slow
def test_tutorial_runs(tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    executed = execute(tmp_path)  # an assertion that fails raises here, with its cell
    assert list(tmp_path.iterdir()) == []
    committed = code_cells()
    again = [cell for cell in executed.cells if cell["cell_type"] == "code"]
    assert [kinds(cell) for cell in again] == [kinds(cell) for cell in committed]


def main():
    import tempfile

    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(folder)
    notebook.metadata["language_info"] = {"name": "python"}  # not the version of this machine
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
