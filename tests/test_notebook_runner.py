"""Running notebooks: what is kept, what is left out, what is refused."""

from __future__ import annotations

from copy import deepcopy

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from emolab.plot.save import read_manifest
from tools.notebooks import compare_figures, main, problems, run_notebook, tidy

SOURCE = """\
import sys
from tqdm import tqdm
for _ in tqdm(range(3)):
    pass
print("one")
print("two")
object()"""


def write(path, *sources, tags=()):
    cells = [new_markdown_cell("# A question", id="title")]
    cells += [new_code_cell(s, id=f"cell-{i}", metadata={"tags": list(tags)}) for i, s in enumerate(sources)]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_two_runs_give_the_same_bytes(tmp_path, capsys):
    path = write(tmp_path / "a.ipynb", SOURCE, "", "1 + 1")
    assert main([str(path)]) == 0
    first = path.read_bytes()
    assert main([str(path)]) == 0 and path.read_bytes() == first
    assert "[1/1] a.ipynb" in capsys.readouterr().out
    nb = nbformat.read(path, as_version=4)
    assert [c.id for c in nb.cells] == ["title", "cell-0", "cell-1", "cell-2"]
    assert [c.execution_count for c in nb.cells[1:]] == [1, None, 2]
    stream, result = nb.cells[1].outputs  # the progress bar is gone, the lines are one stream, the address is out
    assert stream.text == "one\ntwo\n" and result.data["text/plain"] == "<object>"
    assert dict(nb.metadata.language_info) == {"name": "python"} and problems(nb) == []


def test_check_writes_nothing_and_errors_are_refused(tmp_path, capsys):
    path = write(tmp_path / "a.ipynb", "print(1)")
    before = path.read_bytes()
    assert main([str(path), "--check"]) == 0 and path.read_bytes() == before
    path = write(tmp_path / "b.ipynb", "raise KeyError('missing thing')")
    before = path.read_bytes()
    assert main([str(path)]) == 1 and path.read_bytes() == before
    out = capsys.readouterr().out
    assert "FAILED" in out and "missing thing" in out
    assert main([str(tmp_path / "none.ipynb")]) == 1


def test_an_expected_error_is_no_problem(tmp_path):
    path = write(tmp_path / "a.ipynb", "raise NotImplementedError", tags=["raises-exception"])
    assert problems(run_notebook(path)) == []


def test_the_notebook_knows_its_name_and_where_figures_go(tmp_path):
    path = write(tmp_path / "a.ipynb", "import os\nprint(os.environ['EMOLAB_NOTEBOOK'], os.environ['EMOLAB_FIGURES'])")
    nb = run_notebook(path, figures=tmp_path / "f")
    assert nb.cells[1].outputs[0].text == f"a.ipynb {tmp_path / 'f'}\n"


def test_widgets_leave_only_their_static_form():
    view = "application/vnd.jupyter.widget-view+json"
    outputs = [
        new_output("display_data", {view: {"model_id": "1"}, "text/plain": "  0%|   | 0/3"}),
        new_output("display_data", {view: {"model_id": "2"}, "text/plain": "Panel()", "text/html": "<b>static</b>"}),
        new_output("stream", name="stderr", text="\r 10%|# | 1/10 [00:01<00:09]\rUserWarning: odd\n"),
    ]
    nb = tidy(new_notebook(cells=[new_code_cell("x", outputs=outputs)], metadata={"widgets": {"state": {}}}))
    assert "widgets" not in nb.metadata
    html, warning = nb.cells[0].outputs
    assert set(html.data) == {"text/plain", "text/html"} and warning.text == "UserWarning: odd\n"
    assert problems(nb) == ["cell 1 wrote to stderr: UserWarning: odd"]


def test_a_notebook_saved_by_hand_becomes_the_one_that_was_committed():
    """What JupyterLab adds: the state of the view, its kernel's version, an empty last cell, ids of new cells."""
    committed = tidy(
        new_notebook(
            cells=[
                new_markdown_cell("# A question", id="nb00-00"),
                new_code_cell("1 + 1", id="nb00-01", metadata={"tags": ["parameters"]}, execution_count=1),
                new_markdown_cell("New.", id="nb00-new-1"),
                new_code_cell("2", id="nb00-new-2", execution_count=2),
            ]
        )
    )
    saved = deepcopy(committed)
    saved.metadata |= {"widgets": {"state": {}}, "toc-autonumbering": True, "language_info": {"version": "3.12.1"}}
    for cell in saved.cells:
        cell.metadata |= {"scrolled": True, "editable": True, "slideshow": {"slide_type": ""}, "execution": {"a": "b"}}
        cell.metadata |= {"jupyter": {"outputs_hidden": True}} | ({} if cell.id == "nb00-01" else {"tags": []})
    saved.cells[2].id, saved.cells[3].id = "5f0c2a", "b1"
    saved.cells[1].execution_count = 17
    saved.cells += [new_code_cell("", id="8c1d")]
    assert saved != committed and tidy(saved) == committed
    assert tidy(deepcopy(committed)) == committed, "and stays it"


def test_ids_of_other_notebooks_are_left_alone():
    nb = tidy(new_notebook(cells=[new_code_cell("1", id="mine"), new_code_cell("2", id="8c1d")]))
    assert [cell.id for cell in nb.cells] == ["mine", "8c1d"]


def test_large_notebooks_are_refused():
    nb = new_notebook(cells=[new_code_cell("x", outputs=[new_output("stream", name="stdout", text="x" * 1_100_000)])])
    assert "MB with its outputs" in problems(nb)[0]


@pytest.mark.parametrize(("value", "agrees"), [("1.00005", True), ("1.01", False)])
def test_figures_are_compared_by_their_numbers(tmp_path, value, agrees):
    for folder, text in (("new", "x,y\na,1.0\n"), ("old", f"x,y\na,{value}\n")):
        (tmp_path / folder / "data").mkdir(parents=True)
        (tmp_path / folder / "data/f.csv").write_text(text)
    assert (compare_figures(tmp_path / "new", tmp_path / "old") == []) is agrees
    (tmp_path / "old/data/f.csv").unlink()
    assert "run make figures" in compare_figures(tmp_path / "new", tmp_path / "old")[0]


@pytest.mark.parametrize(
    ("changes", "agrees"),
    [
        ({"x": 7.0, "y": -7.0}, True),
        ({"trustworthiness": 0.93}, True),
        ({"trustworthiness": 0.8}, False),
        ({"condition": "fear"}, False),
    ],
)
def test_a_umap_has_to_be_as_good_as_the_committed_one_and_not_the_same(tmp_path, changes, agrees):
    row = {"condition": "joy", "x": 1.0, "y": 2.0, "trustworthiness": 0.95}
    for folder, own in (("new", row), ("old", row | changes)):
        (tmp_path / folder / "data").mkdir(parents=True)
        table = pd.DataFrame([{"method": "pca", **row}, {"method": "umap", **own}])
        table.to_csv(tmp_path / folder / "data/f.csv", index=False)
    assert (compare_figures(tmp_path / "new", tmp_path / "old") == []) is agrees
    table.replace({"umap": "pca"}).to_csv(tmp_path / "old/data/f.csv", index=False)
    assert compare_figures(tmp_path / "new", tmp_path / "old") != []


def test_notebooks_that_run_side_by_side_keep_all_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("EMOLAB_FIGURES", str(tmp_path / "figures"))
    code = """import pandas as pd
from matplotlib.figure import Figure
from emolab.plot import save_figure
for i in range(6):
    save_figure(Figure(), f"{NAME}-{i}", caption="c", alt="a", data=pd.DataFrame({"x": [i]}));"""
    paths = [write(tmp_path / f"{name}.ipynb", code.replace("{NAME}", name)) for name in "ab"]
    assert main([*map(str, paths), "--jobs", "2"]) == 0
    assert set(read_manifest()) == {f"{name}-{i}" for name in "ab" for i in range(6)}
