"""Notebooks as committed: executed, short, each figure with its sentence, answered, no result typed into prose."""

from __future__ import annotations

import ast
import re
from copy import deepcopy
from pathlib import Path
from statistics import median

import nbformat
import pytest

from emolab.plot.save import read_manifest
from tools.notebooks import is_student, problems, tidy

ROOT = Path(__file__).parent.parent
PATHS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
MAX_LINES, MEDIAN_LINES, ALL_LINES = 14, 6, 70  # of code
PROSE_PER_CODE = 0.65  # cells that compute their sentence stand among the code
# A share or a measured value, as one would type a result; neither a paper's number nor a fraction such as 1/4.
TYPED_RESULT = re.compile(r"(?<![\w.{])[-−+]?\d+(?:\.\d+)?\s?%|(?<![\w.{/])[-−+]?\d*\.\d+(?!\.?\w)")
NOT_RESULTS = re.compile(r"95 % intervals?|arXiv[ :]\d{4}\.\d{4,5}|`[^`]*`|\$[^$]*\$")
CAVEAT = "**Caveat.**"
SENTENCE = re.compile(r"\bsay\.|Markdown\(")


def test_there_are_notebooks():
    """A number is one notebook; the classroom's alone has two editions, made from one source."""
    editions = [p for p in PATHS if p.stem.endswith(("_solution", "_student"))]
    assert sorted(p.stem for p in editions) == ["07_classroom_solution", "07_classroom_student"]
    numbers = [p.name[:2] for p in PATHS if not is_student(p)]
    assert set(numbers) >= {"00", "01"} and len(set(numbers)) == len(numbers)


@pytest.fixture(params=PATHS, ids=lambda p: p.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    """But for the one that installs the package on Colab, which `tools.badges` writes."""
    return [c for c in notebook.cells if c.cell_type == "code" and "colab" not in tags(c)]


def tags(cell):
    return cell.metadata.get("tags", [])


def test_format_and_ids(notebook, path):
    nbformat.validate(notebook)
    assert notebook.nbformat == 4 and notebook.nbformat_minor >= 5
    ids = [c.id for c in notebook.cells]
    assert len(set(ids)) == len(ids)
    number = path.name[:2]
    wrong = [i for i in ids if not re.fullmatch(rf"nb{number}-[a-z0-9-]+", i)]
    assert not wrong, f"ids are given by hand, so that they stay: nb{number}-..., not {wrong[:3]}"
    assert set(notebook.metadata) <= {"kernelspec", "language_info", "emolab"}
    assert notebook.metadata.kernelspec.name == "python3" and notebook.metadata.language_info.name == "python"


def test_it_starts_with_a_question_versions_and_parameters(notebook):
    assert notebook.cells[0].cell_type == "markdown" and re.match(r"# .*\?\n", notebook.cells[0].source + "\n")
    first = code_cells(notebook)[0]
    assert "print(emolab.versions())" in first.source
    marked = [c for c in code_cells(notebook) if "parameters" in tags(c)]
    assert len(marked) == 1 and marked[0] in code_cells(notebook)[:2]
    tree = ast.parse(marked[0].source)
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    assert {"MODEL", "RUN"} <= names and all(name.isupper() for name in names)
    called = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    assert called <= {"emolab.Setting"}, "parameters are plain values, or say where to steer"


def test_cells_are_short_and_hold_no_machinery(notebook, path):
    lines = {}
    for cell in code_cells(notebook):
        lines[cell.id] = len([line for line in cell.source.splitlines() if line.strip(" ") and line.strip()[0] != "#"])
        tree = ast.parse(cell.source)
        if not {"exercise", "solution"} & set(tags(cell)):
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
            assert not [n for n in ast.walk(tree) if isinstance(n, kinds)], f"{cell.id} defines something"
        imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not imported & {"matplotlib", "seaborn", "plotly"}, f"{cell.id} draws by itself; emolab.plot does"
        assert not re.search(r"\bplt\.|\.plot\(|\bsns\.|\bax(es)?\.", cell.source), f"{cell.id} draws by itself"
    assert max(lines.values()) <= MAX_LINES, lines
    assert median(lines.values()) <= MEDIAN_LINES, lines
    assert "classroom" in path.stem or sum(lines.values()) <= ALL_LINES, sum(lines.values())


def test_prose_accompanies_code(notebook):
    prose = [c for c in notebook.cells if c.cell_type == "markdown" and c.source.strip()]
    n = len(code_cells(notebook))
    assert len(prose) >= PROSE_PER_CODE * n, f"{len(prose)} cells of prose for {n} of code"
    text = "\n".join(c.source for c in prose)
    for word in ("**Prediction.**", "## Exercise", CAVEAT, "## Answer"):
        assert word in text, f"no {word}"


def test_every_figure_has_its_sentence_and_the_title_its_answer(notebook):
    """Computed, in one of the two cells of code that follow."""
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    for i, cell in enumerate(cells):
        if "save_figure(" in cell.source:
            assert any(SENTENCE.search(after.source) for after in cells[i + 1 : i + 3]), f"no sentence after {cell.id}"
    told = [i for i, c in enumerate(notebook.cells) if c.cell_type == "markdown" and c.source.endswith("## Answer")]
    answer = notebook.cells[told[0] + 1]
    assert answer.cell_type == "code" and "Markdown(" in answer.source
    question = re.sub(r"\W+", " ", notebook.cells[0].source.splitlines()[0]).split()
    assert set(question[:3]) & set(re.sub(r"\W+", " ", answer.source).split()), "it takes up the title's question"


def test_no_result_is_typed_into_a_caveat(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and CAVEAT in cell.source:
            typed = TYPED_RESULT.findall(NOT_RESULTS.sub("", cell.source))
            assert not typed, f"{cell.id} states {typed}; let a cell compute it (Markdown(f'...'))"


def test_figures_have_words_that_come_from_the_result(notebook, path):
    """Captions and alt texts are the computed titles, so that none is false with another model or seed."""
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("save_figure"):
                assert not any(isinstance(k.value, ast.Constant) for k in node.keywords), cell.id
    entries = [e for e in read_manifest(ROOT / "figures").values() if e["notebook"] == path.name]
    assert all(len(entry["caption"].split()) > 3 and len(entry["alt"].split()) > 3 for entry in entries)


def test_it_is_as_make_figures_leaves_it(notebook, path):
    """Not as JupyterLab saves it: no widget that only its own kernel could draw, no state of the view, no random id."""
    assert is_student(path) or tidy(deepcopy(notebook)) == notebook, "saved by hand; run make figures"


def test_executed_from_top_to_bottom(notebook, path):
    """As `make figures` leaves it: 1..n, no error, nothing on stderr, under 1 MB; the student edition empty."""
    cells = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    if is_student(path):
        assert not [c.id for c in cells if c.outputs or c.execution_count], "run python -m tools.editions"
        return
    assert all(c.execution_count for c in cells), f"{path.name} is not executed; run make figures"
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert problems(notebook) == [] and path.stat().st_size < 1_000_000
    assert any("image/png" in out.get("data", {}) for c in cells for out in c.outputs), "a reader sees no figure"
    assert "emolab" in code_cells(notebook)[0].outputs[0].text, "versions"


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("in 85 % of the texts", True),
        ("in 85% of the texts", True),
        ("a cosine of 0.93.", True),
        ("falls to -.25", True),
        ("about -1/4 whatever the model does (arXiv 2502.04075)", False),
        ("At α = 0 nothing is added; layer 4, five emotions, `alpha=0.5`", False),
        ("$\\frac{1}{2}\\cdot 0.5$ of emolab 0.1.0", False),
    ],
)
def test_the_heuristic_for_typed_results(text, typed):
    assert bool(TYPED_RESULT.findall(NOT_RESULTS.sub("", text))) is typed
