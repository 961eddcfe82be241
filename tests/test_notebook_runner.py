"""Running notebooks: what is kept, what is left out, what is refused."""

from __future__ import annotations

import base64
import re
from copy import deepcopy

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from emolab.plot.save import read_manifest
from tools import notebooks
from tools.agreement import drawings_differ, processor, tables_differ, texts_differ
from tools.notebooks import in_order, main, problems, run_notebook, tidy

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
    assert main([str(path), "--check"]) == 1 and path.read_bytes() == before
    assert "cell 2: it shows stdout, committed nothing" in capsys.readouterr().out
    assert main([str(path)]) == 0 and (before := path.read_bytes())
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


def test_styled_tables_are_named_by_their_cells():
    """pandas draws their ids by lot: they would differ in every run, and be equal where a cell names them itself."""

    def drawn():
        outputs = [new_output("display_data", {"text/html": pd.DataFrame({"x": [i]}).style.to_html()}) for i in (1, 2)]
        return new_notebook(cells=[new_code_cell("x", id=name, outputs=deepcopy(outputs)) for name in ("a-1", "a-2")])

    first = tidy(drawn())
    assert first == tidy(drawn()) == tidy(deepcopy(first))
    html = [out.data["text/html"] for cell in first.cells for out in cell.outputs]
    ids = [re.findall(r'<table id="(T_[\w-]+)"', text) for text in html]
    assert ids == [["T_a-1-0"], ["T_a-1-1"], ["T_a-2-0"], ["T_a-2-1"]]


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


# What stays as it is committed


DRAWING = """import os
import pandas as pd
from matplotlib.figure import Figure
from emolab.plot import save_figure
off = float(os.environ.get("OFF", 0))
table = pd.DataFrame({"dose": [0.0, 1.0, 2.0], "share": [0.123456789, 0.5, 0.75]}) * (1 + off)
fig = Figure()
fig.subplots().plot(table["dose"], table["share"], color=os.environ.get("COLOUR", "black"))
fig.axes[0].imshow([[0.1, 0.9 + off]], extent=(0, 1, 0, 1))
shown = save_figure(fig, "shares", caption="Shares.", alt=f"A line up to {table['share'].max():.3f}.", data=table)
print(f"At dose 2 the share is {100 * table['share'].max():.0f}%, n = 24.")
table"""


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A notebook that draws a figure, executed and committed; call it for the files that the next run changes."""
    monkeypatch.setenv("EMOLAB_FIGURES", str(tmp_path / "figures"))
    path = write(tmp_path / "a.ipynb", DRAWING, "shown")
    files = lambda: {p.name: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}  # noqa: E731
    assert main([str(path)]) == 0 and {"shares.svg", "shares.png", "shares.csv", "README.md"} < set(files())

    def changed(*options, **env):
        before = files()
        with monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            assert main([str(path), *options]) == 0
        return {name for name, content in files().items() if before.get(name) != content}

    changed.path = path
    return changed


@pytest.mark.slow
def test_last_digits_of_another_processor_change_no_file(house, capsys):
    assert house(OFF="-2e-6", COLOUR="#000001") == set()
    assert house("--check", OFF="2e-6") == set() and "all well" in capsys.readouterr().out


@pytest.mark.slow
def test_other_numbers_and_another_look_are_written(house, capsys):
    assert house(COLOUR="red") == {"a.ipynb", "shares.svg", "shares.pdf", "shares.png"}
    assert "the drawing has other colours" in capsys.readouterr().out
    drawn = {"shares.svg", "shares.pdf", "shares.png", "shares.csv"}
    assert house(OFF="0.01") == {"a.ipynb", *drawn, "manifest.json", "README.md"}
    assert main([str(house.path), "--check"]) == 1  # without OFF
    out = capsys.readouterr().out
    assert "0.123457" in out and "shares: numbers differ" in out


def test_fresh_writes_all(house):
    assert house("--fresh", OFF="2e-6") >= {"a.ipynb", "shares.csv"}


COUNTED = """import os
text, share, low, high, verdict = os.environ.get("SAID", "I am glad.,0.61,0.50,0.72,rises").split(",")
print(text)
print("layer", len(text))
print(f"**Answer.** The target {verdict} to {share} [{low}, {high}].")"""


@pytest.mark.parametrize(
    ("said", "elsewhere", "what"),
    [
        ("I am glad.,0.61,0.50,0.72,rises", False, ""),
        ("So very glad.,0.66,0.55,0.77,rises", True, ""),
        ("So very glad.,0.66,0.55,0.77,rises", False, "'So very glad. layer', committed 'I am glad. layer'"),
        ("I am glad.,0.80,0.70,0.90,rises", True, "0.80 is outside the committed interval [0.50, 0.72]"),
        ("I am glad.,0.61,0.50,0.72,stays", True, "the verdict is '"),
    ],
)
def test_elsewhere_verdicts_hold_and_numbers_lie_in_the_committed_intervals(
    tmp_path, monkeypatch, capsys, said, elsewhere, what
):
    path = write(tmp_path / "a.ipynb", COUNTED)
    assert main([str(path)]) == 0
    assert nbformat.read(path, as_version=4).metadata.emolab.processor == processor()
    before = path.read_bytes()
    if elsewhere:
        monkeypatch.setattr(notebooks, "processor", lambda: "one that nobody has")
    monkeypatch.setenv("SAID", said)
    capsys.readouterr()
    assert main([str(path), "--check"]) == int(bool(what)) and what in capsys.readouterr().out
    assert main([str(path)]) == 0 and (path.read_bytes() == before) is not bool(what)


def test_a_cell_that_computes_from_what_is_kept_is_exact_everywhere(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "a.ipynb", COUNTED, tags=["exact"])
    assert main([str(path)]) == 0
    monkeypatch.setattr(notebooks, "processor", lambda: "one that nobody has")
    monkeypatch.setenv("SAID", "So very glad.,0.61,0.50,0.72,rises")
    assert main([str(path), "--check"]) == 1 and "committed 'I am glad" in capsys.readouterr().out


def test_a_notebook_that_was_never_executed_is_written(tmp_path):
    path = write(tmp_path / "a.ipynb", "1 + 1")
    assert main([str(path)]) == 0 and nbformat.read(path, as_version=4).cells[1].outputs


@pytest.mark.parametrize(
    ("new", "old", "strict"),
    [
        ("0.8812 and 85%", "0.8813 and 86%", True),
        ("at -1.25e-07, −0.5", "at 3.10e-08, −0.5", True),
        ("<td style='color: #3a4b5d'>  0.5</td>", "<td style='color: #3a4b5c'>\n0.5</td>", True),
        ("L18H3 it said\nso 0.2 [0.1, 0.3]", "L2H1 I wrote\nwell\nso 0.3 [0.2, 0.4]", False),
        ("rises by 12 [9, 15] points", "rises by 14 [11, 17] points", False),
        ("top 88% [75%, 100%]", "top 100% [85%, 100%]", False),
    ],
)
def test_texts_that_agree(new, old, strict):
    assert texts_differ(new, old, strict=strict) == ""


@pytest.mark.parametrize(
    ("new", "old", "strict"),
    [
        ("n = 24", "n = 25", True),
        ("0.8812", "0.8832", True),
        ("88%", "86%", True),
        ("L18H3", "L18H4", True),
        ("0.5 0.5", "0.5", True),
        ("0.5 is more", "0.5 is less", True),
        ("a 0.5 [0.4, 0.6]", "a 0.7 [0.6, 0.8]", False),
        ("a 0.5 [0.4, 0.6]", "a 0.5", False),
        ("joy 0.5 [0.4, 0.6]", "fear 0.5 [0.4, 0.6]", False),
    ],
)
def test_texts_that_do_not_agree(new, old, strict):
    assert texts_differ(new, old, strict=strict)


def test_tables_elsewhere_lie_in_the_committed_intervals():
    share = np.linspace(0, 1, 40)
    old = pd.DataFrame({"emotion": ["joy", "fear"] * 20, "dose": range(40), "share": share, "n": 24})
    old = old.assign(low=share - 0.1, high=share + 0.1)[["emotion", "dose", "share", "low", "high", "n"]]
    near, far = old.assign(share=share + 0.09).sample(frac=1, random_state=0), old.assign(share=share + 0.2)
    assert tables_differ(near, old, strict=True) and not tables_differ(near, old, strict=False)
    assert "outside the committed interval in 40 of 40" in tables_differ(far, old, strict=False)
    few = old.assign(share=far["share"].where(far.index < 2, share))
    assert not tables_differ(few, old, strict=False), "two of forty, as many as 95 % intervals miss"
    assert "0 of 40 committed rows" in tables_differ(old.assign(emotion="anger"), old, strict=False)
    assert "columns" in tables_differ(old.drop(columns="n"), old, strict=False)
    doses = old.assign(dose=old["dose"] / 2)
    assert not tables_differ(doses.assign(share=near["share"]), doses, strict=False), "each dose beside itself"
    turned = doses.assign(share=share[::-1])
    assert "outside the committed interval" in tables_differ(turned, doses, strict=False)


def view(steps, low=-0.5):
    code = base64.b64encode(np.array(steps, "<i2").tobytes()).decode()
    data = f'{{"low":{low},"range":[0.1,0.2],"numbers":{{"step":0.001,"steps":"{code}"}}}}'
    return f"<div data-emolab='{data}'>L3H1</div><script>const step = [0, {low}];</script>"


def test_the_numbers_of_a_view_agree_as_numbers_do():
    assert not texts_differ(view([4, 500, -3]), view([5, 500, -4]), strict=True), "rounding, to the next step"
    assert "1 numbers of the view differ" in texts_differ(view([4, 500]), view([4, 502]), strict=True)
    assert "more or fewer" in texts_differ(view([4, 500]), view([4]), strict=True)
    assert texts_differ(view([4], low=-0.65), view([4]), strict=True)
    assert not texts_differ(view([4, 500]), view([400, 5], low=-0.1), strict=False), "the loose rule reads sentences"


@pytest.mark.parametrize(
    ("changes", "agrees"),
    [
        ({"x": 7.0, "y": -7.0}, True),
        ({"trustworthiness": 0.93}, True),
        ({"trustworthiness": 0.8}, False),
        ({"condition": "fear"}, False),
    ],
)
def test_a_umap_has_to_be_as_good_as_the_committed_one_and_not_the_same(changes, agrees):
    row = {"condition": "joy", "x": 1.0, "y": 2.0, "trustworthiness": 0.95}
    new, old = (pd.DataFrame([{"method": "pca", **row}, {"method": "umap", **own}]) for own in (row, row | changes))
    assert (tables_differ(new, old, strict=True) == "") is agrees
    assert tables_differ(new.replace({"umap": "pca"}), old, strict=True)


def test_what_makes_a_run_goes_first_and_what_finds_it_last_each_longest_first(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "SECONDS", {"c": 9, "e": 5, "d": 2, "f": 3})
    make = "emolab.collect_responses(model, queries, out='runs/smollm2')"
    sources = {"a": "1", "b": make, "c": "1", "d": make, "e": "out='runs/own'", "f": make}
    paths = [write(tmp_path / f"{name}.ipynb", source) for name, source in sources.items()]
    assert "".join(path.stem for path in in_order(paths[::-1])) == "bceafd"


@pytest.mark.slow
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


def test_a_drawing_may_hold_numbers_below_zero_with_a_real_minus():
    """matplotlib writes U+2212 where an axis goes below zero."""
    axis = '<text x="{}">−1.0</text>'
    assert drawings_differ(axis.format("5.1"), axis.format("5.0")) == ""
    assert drawings_differ(axis.format("9.0"), axis.format("5.0")) == "the drawing has marks elsewhere"
    image = '<image id="image{}" xlink:href="#image{}"/>'
    assert drawings_differ(image.format(*["e008d1a439"] * 2), image.format(*["b0de692bb4"] * 2)) == ""
    assert drawings_differ(axis.format("5").replace("−1", "−3"), axis.format("5")) == "the drawing has marks elsewhere"
