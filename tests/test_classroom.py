"""The classroom: right answers pass, every common mistake gets its own words, and both editions are one notebook."""

from __future__ import annotations

import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from torch.nn.functional import normalize

from emolab import classroom
from emolab.classroom.editions import build, main, student_edition
from emolab.errors import EmolabError
from emolab.notebooks import is_student, problems, run_notebook

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
    with pytest.raises(classroom.Unfinished, match="nothing here yet"):
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


def test_the_story_does_not_depend_on_an_answer():
    """No other cell uses what an exercise defines."""
    own = {c.source.split("def ")[1].split("(")[0] for c, _ in exercises()}
    for cell in notebook().cells:
        if cell.cell_type == "code" and not {"exercise", "check"} & set(cell.metadata.get("tags", [])):
            names = set(compile(cell.source, cell.id, "exec").co_names)
            assert not {n for n in own & names if f".{n}" not in cell.source}, cell.id


# ---------------------------------------------------------------- mistakes and their explanations

CHECK = {
    "emotion_vector": classroom.check_emotion_vector,
    "cosine": classroom.check_cosine,
    "split": classroom.check_split,
    "random_like": classroom.check_random_like,
    "share": classroom.check_share,
    "steered_cache": classroom.check_steered_cache,
    "shuffle_labels": classroom.check_shuffle_labels,
    "choose_layer": classroom.check_choose_layer,
}


def gaussian(v, g):
    return torch.randn(v.shape, generator=g)


def long_as(x, v):
    return x / x.norm(dim=-1, keepdim=True) * v.norm(dim=-1, keepdim=True)


def wilson(hits, z=1.96):
    n, p = len(hits), hits.double().mean()
    c, h = (p + z**2 / n / 2) / (1 + z**2 / n), z * (p * (1 - p) / n + (z / n) ** 2 / 4).sqrt() / (1 + z**2 / n)
    return p, c - h, c + h


def wald(hits, cut=False):
    p = hits.double().mean()
    half = 1.96 * (p * (1 - p) / len(hits)).sqrt()
    return (p, (p - half).clamp(0, 1), (p + half).clamp(0, 1)) if cut else (p, p - half, p + half)


def hooked(make, name=None):
    """An answer whose hook function is make(vector)."""

    def steered_cache(model, tokens, hook_name, vector):
        with model.hooks(fwd_hooks=[(name or hook_name, make(vector))]):
            return model.run_with_cache(tokens)[1]

    return steered_cache


def at_last(vector):
    def add(x, hook):
        x = x.clone()
        x[:, -1] += vector
        return x

    return add


def everywhere(model, tokens, hook_name, vector):
    hooks = [(f"blocks.{i}.hook_out", lambda x, hook: x + vector) for i in (1, 2)]
    with model.hooks(fwd_hooks=hooks):
        return model.run_with_cache(tokens)[1]


def left_behind(model, tokens, hook_name, vector):
    model.add_hook(hook_name, lambda x, hook: x + vector)
    return model.run_with_cache(tokens)[1]


def too_late(model, tokens, hook_name, vector):
    before = model.run_with_cache(tokens)[1]
    after = hooked(lambda v: lambda x, hook: x + v)(model, tokens, hook_name, vector)
    return {n: after[n] if n == "blocks.2.hook_out" else before[n] for n in before}


def within(table, change):
    return table.groupby("query_id")["condition"].transform(change)


def in_groups(table, rng):
    return [x for _, s in table.groupby("query_id")["condition"] for x in rng.permutation(s.to_numpy())]


def choose(on, report, hits, n):
    parts = {"first": hits[:, :n], "rest": hits[:, n:], "all": hits}
    layer = int(parts[on].double().mean(1).argmax())
    return layer, parts[report][layer].double().mean()


def in_place(emotional, neutral):
    emotional -= neutral
    return emotional.mean(0)


MISTAKES = [
    ("emotion_vector", lambda e, n: (n - e).mean(0), "sign is turned round"),
    ("emotion_vector", lambda e, n: e.mean(0), "emotional answers alone"),
    ("emotion_vector", lambda e, n: n.mean(0), "neutral answers alone"),
    ("emotion_vector", lambda e, n: (e - n).sum(0), "sum over questions"),
    ("emotion_vector", lambda e, n: e - n, "mean over questions is missing"),
    ("emotion_vector", lambda e, n: (e - n).mean(1), "mean runs over layers"),
    ("emotion_vector", lambda e, n: (e - n).mean(-1), "model's dimensions"),
    ("emotion_vector", lambda e, n: (e - n).mean(), r"\.mean\(\) without an axis.*\n.*\(3, 5\) = \[layer, d_model\]"),
    ("emotion_vector", lambda e, n: normalize((e - n).mean(0), dim=-1), "Keep their length"),
    ("emotion_vector", lambda e, n: 3 * (e - n).mean(0), "shape is right, the numbers are not"),
    ("emotion_vector", lambda e, n: (e - n).mean(0)[:2], "another shape"),
    ("emotion_vector", lambda e, n: (e - n).mean(0) / 0 * 0, "NaN"),
    ("emotion_vector", lambda e, n: print(end=""), "returns nothing"),
    ("emotion_vector", lambda e, n: "joy", "is a str; expected a tensor"),
    ("emotion_vector", lambda e, n: e @ n, r"in line \d+ of its cell with RuntimeError.*\n.*shape \(4, 3, 5\)"),
    ("emotion_vector", lambda e: e, "TypeError"),
    ("emotion_vector", in_place, "changed what it was given"),
    ("emotion_vector", torch.zeros(3, 5), "without brackets"),
    ("cosine", lambda v: v @ v.T, "dot products"),
    ("cosine", lambda v: normalize(v, dim=-1) @ v.T, "each column is divided|each row is divided"),
    ("cosine", lambda v: v @ normalize(v, dim=-1).T, "each column is divided|each row is divided"),
    ("cosine", lambda v: v @ v.T / v.pow(2).sum(1) / v.pow(2).sum(1)[:, None], "squared lengths"),
    ("cosine", lambda v: 1 - normalize(v, dim=-1) @ normalize(v, dim=-1).T, "cosine distances"),
    ("cosine", lambda v: (normalize(v, dim=-1) @ normalize(v, dim=-1).T).abs(), "sign is lost"),
    ("cosine", lambda v: normalize(v, dim=0) @ normalize(v, dim=0).T, "wrong axis"),
    ("cosine", lambda v: v @ v.T / v.norm() ** 2, "one length"),
    ("cosine", lambda v: normalize(v, dim=0).T @ normalize(v, dim=0), "between the model's dimensions"),
    ("cosine", lambda v: torch.cosine_similarity(v, v), r"compared with itself.*\n.*\(3, 3\) = \[emotion, emotion\]"),
    ("split", lambda v: v.mean(0), "expected two tensors"),
    ("split", lambda v: (v - v.mean(0), v.mean(0)), "swapped"),
    ("split", lambda v: (v.mean(0, keepdim=True), v - v.mean(0)), "of size 1"),
    ("split", lambda v: (v.sum(0), v - v.sum(0)), "base is a sum"),
    ("split", lambda v: (v.mean(1), v - v.mean(0)), "mean over layers"),
    ("split", lambda v: (v.mean(), v - v.mean()), "mean of everything"),
    ("split", lambda v: (v.median(0).values, v - v.median(0).values), "median"),
    ("split", lambda v: (v.mean(0), v), "still the whole vector"),
    ("split", lambda v: (v.mean(0), v.mean(0) - v), "wrong sign"),
    ("split", lambda v: (v.mean(0), v + v.mean(0)), "was added"),
    ("split", lambda v: (v.mean(0), normalize(v - v.mean(0), dim=-1)), "length 1"),
    (
        "split",
        lambda v: (v.mean(0), v - (v * (u := normalize(v.mean(0), dim=-1))).sum(-1, keepdim=True) * u),
        "projected out",
    ),
    ("random_like", lambda v, g: gaussian(v, g)[0], r"expected shape \(3, 64\)"),
    ("random_like", lambda v, g: v / 0, "NaN or infinity"),
    ("random_like", lambda v, g: -v, "still the vector's own direction"),
    ("random_like", lambda v, g: long_as(torch.randn(v.shape), v), "global state"),
    ("random_like", lambda v, g: long_as(gaussian(v, g.manual_seed(3)), v), "Draw from the generator"),
    ("random_like", lambda v, g: normalize(gaussian(v, g), dim=-1), "directions have length 1"),
    ("random_like", gaussian, "raw random numbers"),
    ("random_like", lambda v, g: gaussian(v, g) * v.norm(dim=-1, keepdim=True), "not divided by their own"),
    ("random_like", lambda v, g: (x := gaussian(v, g)) / x.norm() * v.norm(), "for all layers together"),
    ("random_like", lambda v, g: normalize(gaussian(v, g), dim=-1) * v.norm(), "every layer has the same length"),
    ("random_like", lambda v, g: long_as(long_as(gaussian(v, g), v), v) * v.norm(dim=-1, keepdim=True), "squared"),
    ("random_like", lambda v, g: long_as(gaussian(v[:1], g).expand(3, -1), v), "all layers have the same direction"),
    ("random_like", lambda v, g: long_as(torch.rand(v.shape, generator=g), v), "torch.rand draws"),
    ("share", lambda h: h.double().mean(), "expected 3 numbers"),
    ("share", lambda h: [100 * x for x in wilson(h)], "percent"),
    ("share", lambda h: (lambda p, a, b: (a, p, b))(*wilson(h)), "order is share, lo, hi"),
    ("share", lambda h: (lambda p, a, b: ((a + b) / 2, a, b))(*wilson(h)), "centre of the interval"),
    ("share", wald, "normal approximation"),
    ("share", lambda h: wald(h, cut=True), "cut at 0 and 1"),
    ("share", lambda h: (lambda p, a, b: (p, p - (b - a) / 2, p + (b - a) / 2))(*wilson(h)), "around its own centre"),
    ("share", lambda h: wilson(h, 1.0), "one standard error"),
    ("share", lambda h: wilson(h, 1.645), "90 %"),
    ("share", lambda h: wilson(h) if h.double().mean() < 1 else wald(h), "8 hits of 8 give an interval without width"),
    ("steered_cache", lambda m, t, n, v: m.run_with_cache(t), "return the cache alone"),
    ("steered_cache", lambda m, t, n, v: m(t), "expected the cache"),
    ("steered_cache", lambda m, t, n, v: m.run_with_cache(t)[1], "nothing is changed"),
    ("steered_cache", hooked(lambda v: lambda x, hook: None), "nothing is changed"),
    ("steered_cache", hooked(lambda v: lambda x, hook: v.expand_as(x)), "replaced"),
    ("steered_cache", hooked(lambda v: lambda x, hook: x - v), "subtracted"),
    ("steered_cache", hooked(lambda v: lambda x, hook: x + 2 * v), "twice"),
    ("steered_cache", hooked(at_last), "last token alone"),
    ("steered_cache", hooked(lambda v: lambda x, hook: x + v / v.norm()), "length 1"),
    ("steered_cache", hooked(lambda v: lambda x, hook: x + v, "blocks.0.hook_out"), "layer 0 is changed"),
    ("steered_cache", everywhere, "at every layer"),
    ("steered_cache", left_behind, "still there"),
    ("steered_cache", too_late, "before the hook came"),
    ("shuffle_labels", lambda t, r: t, "got a table"),
    ("shuffle_labels", lambda t, r: t["condition"][:3], "expected 16 labels"),
    ("shuffle_labels", lambda t, r: t["condition"], "as they were"),
    ("shuffle_labels", lambda t, r: t["condition"].sample(frac=1, random_state=0), "puts it back in order"),
    ("shuffle_labels", lambda t, r: r.permutation(t["condition"].to_numpy()), "moved between questions"),
    ("shuffle_labels", lambda t, r: within(t, np.random.permutation), "Draw with rng"),
    ("shuffle_labels", lambda t, r: within(t, lambda s: sorted(s)), "no shuffling"),
    ("shuffle_labels", lambda t, r: within(t, lambda s: r.choice(s.to_numpy(), len(s))), "not rng.choice"),
    ("shuffle_labels", lambda t, r: r.permutation(len(t)), "the labels themselves"),
    ("shuffle_labels", in_groups, "question by question"),
    ("choose_layer", lambda h, n: int(h[:, :n].sum(1).argmax()), "expected 2 numbers"),
    ("choose_layer", lambda h, n: h[:, :n].mean(1), "RuntimeError"),
    ("choose_layer", lambda h, n: choose("first", "first", h, n), "also lucky"),
    ("choose_layer", lambda h, n: choose("first", "all", h, n), "of all questions, those that chose it"),
    ("choose_layer", lambda h, n: choose("all", "rest", h, n), "chosen on all questions"),
    ("choose_layer", lambda h, n: choose("all", "all", h, n), "chosen, and reported"),
    ("choose_layer", lambda h, n: choose("rest", "rest", h, n), "Choose on the first n"),
    ("choose_layer", lambda h, n: (0, h[:, n:].double().mean(1).max()), "best of any layer"),
    ("choose_layer", lambda h, n: (h[:, :n].double().mean(1).max(), h[0, n:].double().mean()), "argmax"),
    ("choose_layer", lambda h, n: choose("first", "rest", h, n)[::-1], "order is layer, share"),
]


@pytest.mark.parametrize(("name", "answer", "words"), MISTAKES, ids=[f"{m[0]}-{i}" for i, m in enumerate(MISTAKES)])
def test_a_mistake_gets_its_explanation(name, answer, words):
    with pytest.raises(classroom.Wrong, match=words) as caught:
        CHECK[name](answer)
    text = str(caught.value)
    assert text.startswith(f"{name}: ") and caught.value._render_traceback_() == text.splitlines()


def test_other_ways_of_being_right(capsys):
    classroom.check_emotion_vector(lambda e, n: (e.mean(0) - n.mean(0)).numpy())
    classroom.check_cosine(lambda v: torch.cosine_similarity(v[:, None], v[None], dim=-1).tolist())
    classroom.check_split(lambda v: [v.mean(0), v - v.mean(0, keepdim=True)])
    classroom.check_share(wilson)
    classroom.check_share(lambda h: np.array([float(x) for x in wilson(h, 1.959964)]))
    shuffled = classroom.check_shuffle_labels  # as a Series in any order: pandas puts it back by its index
    shuffled(lambda t, r: within(t, lambda s: r.permutation(s.to_numpy())).sample(frac=1, random_state=0))
    classroom.check_choose_layer(lambda h, n: (h[:, :n].sum(1).argmax(), h[0, n:].float().mean()))
    assert capsys.readouterr().out.count(": right. ") == 7


def test_checks_leave_random_states_alone():
    torch.manual_seed(0)
    first = torch.rand(3)
    torch.manual_seed(0)
    classroom.check_random_like(lambda v, g: long_as(gaussian(v, g), v))
    classroom.check_steered_cache(hooked(lambda v: lambda x, hook: x + v))
    assert torch.equal(torch.rand(3), first)


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
    assert exercise.source == "def f(x):\n    # YOUR CODE HERE\n    raise NotImplementedError"
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
    assert not build(SOURCE, check=True), "run python -m emolab.classroom"


def test_build_writes_only_what_is_stale(tmp_path, capsys):
    source, student = tmp_path / "a_solution.ipynb", tmp_path / "a_student.ipynb"
    nbformat.write(small(), source)
    assert main([str(source), "--check"]) == 1 and not student.exists()
    assert main([str(source)]) == 0 and is_student(student) and "written" in capsys.readouterr().out
    assert main([str(source), "--check"]) == 0 and "up to date" in capsys.readouterr().out
    student.write_text(student.read_text().replace("YOUR CODE", "MY CODE"))
    assert build(source, check=True)
    assert main([str(student)]) == 1 and "no solution edition" in capsys.readouterr().out


def test_a_notebook_shows_the_words_and_no_stack_trace(tmp_path):
    """Unfinished is expected of a student's check; any other error there is a problem."""
    nb = small("def cosine(v):\n    ### BEGIN SOLUTION\n    return v\n    ### END SOLUTION")
    nb.cells[3].source = "from emolab import classroom\nclassroom.check_cosine(cosine)"
    nbformat.write(nb, tmp_path / "a_solution.ipynb")
    build(tmp_path / "a_solution.ipynb")
    path = tmp_path / "a_student.ipynb"
    ran = run_notebook(path)
    (out,) = ran.cells[2].outputs
    assert out.ename == "Unfinished" and out.traceback == [out.evalue] and problems(ran) == []
    path.write_text(path.read_text().replace("raise NotImplementedError", "return v @ v.T"))
    ran = run_notebook(path)
    (out,) = ran.cells[2].outputs
    assert out.ename == "Wrong" and out.traceback == [out.evalue] and "dot products" in out.evalue
    assert "ends in Wrong" in problems(ran)[0]
