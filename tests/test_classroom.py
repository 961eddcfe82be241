"""The classroom: right answers pass, every common mistake gets its own words, and both editions are one notebook."""

from __future__ import annotations

import ast
import re
import shutil
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from classroom_checks import EXERCISES, Unfinished, Wrong, accepted
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from emolab.base.errors import EmolabError
from tests.classroom_mistakes import MISTAKES, gaussian, hooked, long_as, wilson, within
from tools.editions import build, main, student_edition
from tools.notebooks import is_student, problems, run_notebook

SOURCE = Path(__file__).parent.parent / "notebooks/07_classroom_solution.ipynb"


def notebook():
    return nbformat.read(SOURCE, as_version=4)


def tagged(nb, tag):
    return [c for c in nb.cells if tag in c.metadata.get("tags", [])]


def namespace():
    """What the notebook's first cell gives to all others, without running a model."""
    given = {}
    exec(next(c.source for c in notebook().cells if c.cell_type == "code").split("print(")[0], given)
    return given


# ---------------------------------------------------------------- the exercises of the notebook


def exercises():
    nb = notebook()
    return list(zip(tagged(nb, "exercise"), tagged(nb, "check"), strict=True))


@pytest.mark.parametrize(("exercise", "check"), exercises(), ids=lambda c: c.id)
def test_the_solution_passes_quickly_and_the_stub_is_unfinished(exercise, check, capsys):
    given = namespace()
    exec(exercise.source, given)
    exec(check.source, given)  # the first call imports TransformerLens
    capsys.readouterr()
    start = time.process_time()
    exec(check.source, given)
    assert time.process_time() - start < 1
    printed = capsys.readouterr().out
    assert ": right. " in printed and len(printed.splitlines()) == 1
    stub = next(c for c in student_edition(notebook()).cells if c.id == exercise.id)
    given = namespace()
    exec(stub.source, given)
    with pytest.raises(Unfinished, match="nothing here yet"):
        exec(check.source, given)


def test_every_exercise_says_how_hard_it_is_and_gives_hints():
    nb, last = notebook(), 0
    assert 6 <= len(exercises()) <= 8
    for number, (exercise, check) in enumerate(exercises(), 1):
        header = nb.cells[nb.cells.index(exercise) - 1].source
        assert header.startswith(f"## Exercise {number}: ")
        dots, minutes, purpose = header.splitlines()[2].split(" · ", 2)
        assert len(dots) == 5 and set(dots) <= set("●○") and dots == "".join(sorted(dots, reverse=True))
        assert dots.count("●") >= last and minutes.endswith(" minutes") and len(purpose) > 20
        last = dots.count("●")
        assert 1 <= header.count("<details>") == header.count("</details>") <= 2
        marks = exercise.metadata["nbgrader"], check.metadata["nbgrader"]
        assert [(m["solution"], m["grade"], m["locked"], m["schema_version"]) for m in marks] == [
            (True, False, False, 3), (False, True, True, 3),
        ]  # fmt: skip
        assert check.metadata["nbgrader"]["points"] == last
        assert {"grade_id", "task"} <= set(marks[0]) & set(marks[1])
    ids = [c.metadata["nbgrader"]["grade_id"] for c in nb.cells if "nbgrader" in c.metadata]
    assert len(set(ids)) == len(ids) == 2 * len(exercises())


def test_the_notebook_goes_on_with_accepted_answers_only():
    """Every function that an exercise defines is used further on, and stands in `accepted(...)` there."""
    names = {exercise.source.split("def ")[1].split("(")[0] for exercise, _ in exercises()}
    assert names == set(EXERCISES)
    used = set()
    for cell in notebook().cells:
        if cell.cell_type == "code" and not {"exercise", "check"} & set(cell.metadata.get("tags", [])):
            call = r"accepted\((\w+)\)"
            used |= set(re.findall(call, cell.source))
            tree = ast.parse(re.sub(call, "accepted", cell.source))
            assert not names & {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}, cell.id
    assert used == names


# ---------------------------------------------------------------- mistakes and their explanations


@pytest.mark.parametrize(("name", "answer", "words"), MISTAKES, ids=[f"{m[0]}-{i}" for i, m in enumerate(MISTAKES)])
def test_a_mistake_gets_its_explanation(name, answer, words):
    with pytest.raises(Wrong, match=words) as caught:
        EXERCISES[name][0](answer)
    text = str(caught.value)
    assert text.startswith(f"{name}: ") and caught.value._render_traceback_() == text.splitlines()


RIGHT = [
    *[(name, ours) for name, (_, _, ours) in EXERCISES.items()],
    ("emotion_vector", lambda e, n: (e.mean(0) - n.mean(0)).numpy()),
    ("cosine", lambda v: torch.cosine_similarity(v[:, None], v[None], dim=-1).tolist()),
    ("split", lambda v: [v.mean(0), v - v.mean(0, keepdim=True)]),
    ("share", wilson),
    ("share", lambda h: np.array([float(x) for x in wilson(h, 1.959964)])),
    # As a Series in any order: pandas puts it back by its index.
    ("shuffle_labels", lambda t, r: within(t, lambda s: r.permutation(s.to_numpy())).sample(frac=1, random_state=0)),
    ("choose_layer", lambda h, n: (h[:, :n].sum(1).argmax(), h[0, n:].float().mean())),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[f"{name}-{i}" for i, (name, _) in enumerate(RIGHT)])
def test_ways_of_being_right(name, answer, capsys):
    EXERCISES[name][0](answer)
    assert capsys.readouterr().out.startswith(f"{name}: right. ")


def test_checks_leave_random_states_alone():
    torch.manual_seed(0)
    first = torch.rand(3)
    torch.manual_seed(0)
    EXERCISES["random_like"][0](lambda v, g: long_as(gaussian(v, g), v))
    EXERCISES["steered_cache"][0](hooked(lambda v: lambda x, hook: x + v))
    assert torch.equal(torch.rand(3), first)


# ---------------------------------------------------------------- answers that the notebook goes on with


def split_right(vectors):
    return [vectors.mean(0).numpy(), (vectors - vectors.mean(0)).tolist()]


def split_wrong(vectors):
    return vectors.mean(0), vectors


def split_open(vectors):
    raise NotImplementedError


@pytest.mark.parametrize(("answer", "own"), [(split_right, True), (split_wrong, False), (split_open, False)])
def test_an_accepted_answer_is_used_and_any_other_replaced(answer, own, capsys):
    vectors, calls = torch.randn(3, 2, 4), []

    def split(x):
        calls.append(x)
        return answer(x)

    go_on = accepted(split)
    calls.clear()
    shared, specific = go_on(vectors)
    assert torch.allclose(shared, vectors.mean(0).double()) and torch.allclose(specific + shared, vectors.double())
    assert bool(calls) is own and capsys.readouterr().out == ""


def test_an_answer_of_another_name_is_refused():
    with pytest.raises(Wrong, match="split_right is no exercise; expected .*emotion_vector, cosine, split"):
        accepted(split_right)


# ---------------------------------------------------------------- editions


def small(code="def f(x):\n    ### BEGIN SOLUTION\n    y = x\n    return y\n    ### END SOLUTION", exercise="exercise"):
    return new_notebook(
        cells=[
            new_markdown_cell("# Why?", id="nb99-00"),
            new_markdown_cell("for teachers", id="nb99-01", metadata={"tags": ["teacher"]}),
            new_code_cell(code, id="nb99-02", metadata={"tags": [exercise], "nbgrader": {}}, execution_count=1),
            new_code_cell("check(f)", id="nb99-03", metadata={"tags": ["check"], "nbgrader": {}}),
        ]
    )


def test_the_student_edition_has_stubs_and_the_same_code_folded():
    source = small()
    source.cells[3].outputs = [nbformat.v4.new_output("stream", text="f: right.")]
    nb = student_edition(source)
    title, exercise, check, solution = nb.cells
    ids = [c.id.removeprefix("nb99-") for c in nb.cells]
    assert title.source == "# Why?" and ids == ["00", "02", "03", "02-solution"]
    assert exercise.source == "def f(x):\n    # YOUR CODE HERE\n    raise NotImplementedError()"
    assert "```python\ndef f(x):\n    y = x\n    return y\n```" in solution.source
    assert solution.source.startswith("<details><summary>Solution</summary>\n\n")
    assert check.metadata == {"tags": ["check", "raises-exception"]} and exercise.metadata == {"tags": ["exercise"]}
    assert check.outputs == [] and exercise.execution_count is None
    assert len(source.cells[3].outputs) == 1, "the source stays as it is"


@pytest.mark.parametrize(
    ("nb", "words"),
    [
        (small("def f(x):\n    return x"), "lacks ### BEGIN SOLUTION"),
        (small("def f(x):\n    ### BEGIN SOLUTION\n    return x"), "lacks ### BEGIN SOLUTION"),
        (small(exercise="other"), "still holds a solution"),
        (small("x = 1", exercise="other"), "check without an exercise"),
    ],
)
def test_a_broken_source_is_refused(nb, words):
    with pytest.raises(EmolabError, match=words):
        student_edition(nb)


def test_an_exercise_without_check_is_refused():
    nb = small()
    del nb.cells[3]
    with pytest.raises(EmolabError, match="nb99-02-solution has no check"):
        student_edition(nb)


def test_the_committed_student_edition_is_not_stale():
    assert not build(SOURCE, check=True), "run python -m tools.editions"


def test_build_writes_only_what_is_stale(tmp_path, capsys):
    source, student = tmp_path / "a_solution.ipynb", tmp_path / "a_student.ipynb"
    nbformat.write(small(), source)
    assert main([str(source), "--check"]) == 1 and not student.exists()
    assert main([str(source)]) == 0 and is_student(student) and "written" in capsys.readouterr().out
    assert main([str(source), "--check"]) == 0 and "up to date" in capsys.readouterr().out
    student.write_text(student.read_text().replace("YOUR CODE", "MY CODE"))
    assert build(source, check=True)
    assert main([str(student)]) == 1 and "no solution edition" in capsys.readouterr().out
    assert main([str(tmp_path / "b_solution.ipynb")]) == 1 and "no " in capsys.readouterr().out


def test_a_notebook_shows_the_words_and_no_stack_trace(tmp_path):
    """Unfinished is expected of a student's check; any other error there is a problem."""
    nb = small("def cosine(v):\n    ### BEGIN SOLUTION\n    return v\n    ### END SOLUTION")
    nb.cells[3].source = "import classroom_checks\nclassroom_checks.check_cosine(cosine)"
    shutil.copy(SOURCE.parent / "classroom_checks.py", tmp_path)
    nbformat.write(nb, tmp_path / "a_solution.ipynb")
    build(tmp_path / "a_solution.ipynb")
    path = tmp_path / "a_student.ipynb"
    ran = run_notebook(path)
    (out,) = ran.cells[2].outputs
    assert out.ename == "Unfinished" and out.traceback == [out.evalue] and problems(ran) == []
    path.write_text(path.read_text().replace("raise NotImplementedError()", "return v @ v.T"))
    ran = run_notebook(path)
    (out,) = ran.cells[2].outputs
    assert out.ename == "Wrong" and out.traceback == [out.evalue] and "dot products" in out.evalue
    assert "ends in Wrong" in problems(ran)[0]
