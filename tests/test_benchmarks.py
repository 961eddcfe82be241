"""The benchmarks measure what they say: equal work on both sides, ratios right, results kept. Nothing here is timed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch

import emolab

ROOT = Path(__file__).parent.parent


def script(name: str):
    path = str(ROOT / "benchmarks")
    if path not in sys.path:
        sys.path.insert(0, path)
    return importlib.import_module(name)


harness = script("_harness")


@pytest.fixture(scope="module")
def model():
    return harness.loaded("float32", quick=True)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Where results go instead of into the repository."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(harness, "PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setitem(harness._settings, "write", True)
    monkeypatch.setattr(sys, "argv", ["mine.py"])
    return tmp_path


def tokens_read(model, case) -> int:
    """How many tokens a case puts through the plain model."""
    case()  # what a first call alone does, such as the check of the bridge, is in no measured round either
    seen = []

    embedding = getattr(model, "hf", model).get_input_embeddings()

    def count(module, args, output):
        if module is embedding:
            seen.append(output.shape[0] * output.shape[1])

    handle = torch.nn.modules.module.register_module_forward_hook(count)  # one on the model itself would change its way
    try:
        case()
    finally:
        handle.remove()
    return sum(seen)


def test_ratios_are_those_of_the_same_round():
    seconds = {"plain": [1.0, 2.0, 3.0], "hooked": [2.0, 2.0, 9.0]}
    plain, hooked = harness.ratios(seconds, against="plain", goals={"hooked": ("<=", 1.9)})
    assert (plain["ratio"], hooked["ratio"]) == (1, 2)
    assert (hooked["ratio_min"], hooked["ratio_max"], hooked["median_s"], hooked["rounds"]) == (1, 3, 2, 3)
    assert hooked["met"] is False and "goal" not in plain
    fast = harness.ratios(seconds, against="plain", speed=True, goals={"hooked": (">=", 0.5)})[1]
    assert (fast["ratio"], fast["ratio_max"], fast["of"], fast["met"]) == (0.5, 1, "speed", True)


@pytest.mark.parametrize("repeats", [1, 6])
def test_a_warm_up_is_not_counted_and_each_case_goes_first_in_turn(repeats):
    order: list[str] = []

    def case(name):
        return lambda: (order.append(name), len(order))[1]

    seconds = harness.measure_timed({name: case(name) for name in "abc"}, repeats=repeats)
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert len(rounds) == repeats + 1 and all(sorted(r) == list("abc") for r in rounds)
    assert sorted(x for found in seconds.values() for x in found) == list(range(4, len(order) + 1))
    if repeats == 6:
        assert {r[0] for r in rounds} == {r[-1] for r in rounds} == set("abc")


def test_results_replace_those_of_the_same_script_alone(written, monkeypatch):
    row = harness.plain_row("x", 2.0, "s", ("<=", 1))
    harness.record("old", [row], setting="here")
    harness.record("old, too", [row], setting="here")
    for script_name, name in (("no_more.py", "of a script that is gone"), ("growth.py", "another's")):
        monkeypatch.setattr(sys, "argv", [script_name])
        harness.record(name, [row], setting="here")
    monkeypatch.setattr(sys, "argv", ["mine.py"])
    monkeypatch.setattr(harness, "RUN", "later")
    harness.record("new", [row], setting="here")
    found = json.loads(harness.RESULTS.read_text())
    assert [x["name"] for x in found] == ["another's", "new"]
    assert harness.PAGE.read_text() == harness.page(found)
    assert "| new, x; here |  | 2 s | <= 1 | **no** |" in harness.page(found)


def test_quick_runs_write_nothing(written, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mine.py", "--quick"])
    assert harness.arguments().repeats == 2
    harness.record("old", [harness.plain_row("x", 2.0, "s")], setting="here")
    assert not list(written.iterdir())


def test_extraction_reads_the_same_batches_and_no_more_tokens(model):
    extraction = script("extraction")
    table = extraction.answers(model, 12)
    read = {name: tokens_read(model, case) for name, case in extraction.cases(model, table, 6).items()}
    bare = read.pop("bare forward")
    assert read["all sites and heads, each row whole"] == bare >= read["all sites and heads"]
    assert read["all sites and heads"] == read["residual stream only"]


def test_every_case_of_writing_writes_the_same_tokens(model):
    writing = script("writing")
    theirs = writing.plain(model)
    read = {
        "theirs": tokens_read(theirs, writing.hugging_face(model, theirs, 3, 6)),
        "ours": tokens_read(model.hf, writing.ours(model, 3, 6)),
        "steered": tokens_read(model.hf, writing.ours(model, 3, 6, steered=True)),
    }
    assert len(set(read.values())) == 1, "no prompt is shared, and no answer ends"
    writing.streaming(model, 5)()
    layers = sum(isinstance(m, torch.nn.Linear) for m in model.hf.modules())
    with mock.patch.object(torch.nn.functional, "linear", side_effect=torch.nn.functional.linear) as product:
        writing.products(model, 3, 2)()
    assert product.call_count == 2 * layers and all(len(call.args[0]) == 3 for call in product.call_args_list)


def test_both_sides_of_the_grid_write_and_score_the_same(model):
    grid = script("grid")
    emolab.set_progress(False)
    settings, asked = grid.settings(model, quick=True), harness.questions(2, quick=True)
    assert len(settings) == len(set(settings)) == 8
    ours, _ = grid.ours(model, asked, settings, 6)
    theirs, spent = grid.by_hand(model, script("writing").plain(model), asked, settings, 6)
    assert min(spent.values()) > 0
    ours = (
        ours[ours["alpha"] != 0].astype({"alpha": float}).set_index(["site", "emotion", "alpha", "query"]).sort_index()
    )
    theirs = theirs.astype({"alpha": float}).set_index(["site", "emotion", "alpha", "query"]).sort_index()
    assert list(ours.index) == list(theirs.index)
    # By hand the prompt is steered, too: the texts are not the same, and what is read of the same texts is.
    both = ours["text"].str.strip() == theirs["text"]
    for column in ("perplexity", "p_joy", "repetition", "adherence"):
        np.testing.assert_allclose(ours.loc[both, column], theirs.loc[both, column], rtol=1e-2, atol=1e-3)
    assert theirs["perplexity"].gt(1).all() and theirs["perplexity_instructed"].gt(1).all()


def test_a_toy_writes_nothing_of_the_quick_study(monkeypatch, written):
    study = script("study")
    monkeypatch.setattr(sys, "argv", ["study.py", "--quick"])
    study.main()
    assert not list(written.iterdir())


def test_growth_draws_every_point_and_its_slope():
    growth = script("growth")
    rows = [(q, n, 1 + 0.5 * n, 0.5 * n, 2 + 0.5 * n) for q in growth.UNITS for n in (1, 2, 4)]
    table = pd.DataFrame(rows, columns=["quantity", "n", "median", "low", "high"])
    assert np.allclose(growth.slope(table[table["quantity"] == "texts"]), (0.5, 1))
    fig = growth.draw(table, "footer", dict.fromkeys(growth.UNITS, "work"))
    assert [ax.get_title(loc="left") for ax in fig.axes] == [f"500 ms for one more {u}" for u in growth.UNITS.values()]
    for ax in fig.axes:
        points = next(line for line in ax.lines if line.get_linestyle() == "None")
        assert points.get_xydata().tolist() == [[1, 1.5], [2, 2], [4, 3]]


def test_import_loads_no_heavy_package():
    assert script("startup").heavy() == []


def test_readme_line_rounds_the_results():
    def entry(name, case, ratio):
        return {"name": name, "rows": [{"case": case, "ratio": ratio}]}

    results = [
        entry("writing beside Hugging Face in bfloat16", "emolab, bfloat16", 1.649),
        entry("a grid, written and scored", "emolab", 7.351),
    ]
    line = harness.readme_line(results)
    assert "scored 7.4 times as fast" in line and "written at 1.65 times its speed" in line


def test_readme_and_page_say_what_was_measured():
    if not harness.RESULTS.exists():
        pytest.skip("nothing was measured yet: make bench")
    results = json.loads(harness.RESULTS.read_text(encoding="utf-8"))
    assert harness.PAGE.read_text(encoding="utf-8") == harness.page(results)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert harness.readme_line(results) in readme, f"README.md should say: {harness.readme_line(results)}"
    assert emolab.__version__ in results[0]["machine"]["versions"]
