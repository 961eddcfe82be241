"""The benchmarks measure what they say: equal work on both sides, ratios right, results kept. Nothing here is timed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

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
    return harness.random_model(2, 64)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Where results go instead of into the repository."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(harness, "PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setitem(harness._settings, "write", True)
    monkeypatch.setattr(sys, "argv", ["mine.py"])
    return tmp_path


def tokens_read(model, case) -> int:
    """How many tokens a case puts through the model, plain or bridged."""
    case()  # what a first call alone does, such as the check of the bridge, is in no measured round either
    seen = []

    modules = {id(model.hf.get_input_embeddings()), id(model.bridge.embed)}

    def count(module, args, output):
        if id(module) in modules:
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
    monkeypatch.setattr(sys, "argv", ["other.py"])
    harness.record("another's", [row], setting="here")
    monkeypatch.setattr(sys, "argv", ["mine.py"])
    monkeypatch.setattr(harness, "RUN", "later")
    harness.record("new", [row], setting="here")
    found = json.loads(harness.RESULTS.read_text())
    assert [x["name"] for x in found] == ["new", "another's"]
    assert harness.PAGE.read_text() == harness.page(found)
    assert "| new, x; here |  | 2 s | <= 1 | **no** |" in harness.page(found)


def test_quick_runs_write_nothing(written, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mine.py", "--quick"])
    assert harness.arguments().repeats == 2
    harness.record("old", [harness.plain_row("x", 2.0, "s")], setting="here")
    assert not list(written.iterdir())


def test_every_case_of_extraction_reads_the_same_tokens(model):
    extraction = script("extraction")
    cases = extraction.cases(model, extraction.responses(16), 8)
    assert {name: tokens_read(model, case) for name, case in cases.items()} == dict.fromkeys(cases, 16 * 128)


def test_every_case_of_steering_writes_the_same_tokens(model):
    steering = script("steering")
    cases = steering.cases(model, 2, bridge=True)
    assert len(cases) == 4
    read = {name: tokens_read(model, case) for name, case in cases.items()}
    assert read == dict.fromkeys(cases, 2 * (steering.PROMPT + steering.NEW - 1))


def test_the_grid_holds_different_steerings_of_one_prompt(model):
    prompts, grid = script("steering").grid(model)
    assert len(set(prompts)) == 1 and len({(s.site, *s.doses.items()) for s in grid}) == len(prompts) == 36


def test_both_orders_of_a_sweep_write_the_same_texts(model):
    batching = script("batching")
    sizes = batching.lengths(3, 8, 20)
    assert sorted(sizes) == [8, 14, 20]
    queries = pd.DataFrame({"query_id": list("abc"), "query": [harness.text(n, n) for n in sizes]})
    queries = queries.assign(emotion="neutral", situation=queries["query_id"])
    texts: dict = {}
    cases = batching.sweep_cases(model, queries, texts)
    read = {name: tokens_read(model, case) for name, case in cases.items()}
    assert texts["file order"] == list(texts["by length"]["text"])
    assert read["by length, unsteered once"] < read["file order"]


def test_a_shared_prompt_gives_the_same_text_from_fewer_tokens(model):
    texts = {}
    cases = script("batching").prefix_cases(model, 4, 10, texts)
    whole, shared = (tokens_read(model, case) for case in cases.values())
    assert len(texts) == 2 and len({tuple(found) for found in texts.values()}) == 1
    assert whole - shared == 3 * 9  # all but the last of ten tokens, of three rows


def test_memory_takes_the_result_off():
    memory = script("memory")
    if not memory.CLEAR.exists():
        pytest.skip("needs Linux")
    found = memory.measure(8, 4, 2, 64)
    assert found["result"] == 8 * 4 * (4 * 2 * 64 + 2) / 2**20  # resid, attn, mlp and heads, and the norm
    assert found["extra"] == found["peak"] - found["before"] - found["result"]


def test_emolab_side_of_the_peers_reads_the_last_token(tmp_path):
    worker, extraction = script("_peer_worker"), script("extraction")
    hf, tokenizer = harness.random_pair(2, 64)
    hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    table = extraction.responses(12)
    worker.emolab_cases(tmp_path, {"rows": table.to_dict("records"), "emotions": ["joy", "anger"]})["check"]()
    ids = tokenizer(list(table["prompt"] + " " + table["text"]), return_tensors="pt").input_ids
    last = hf(ids, output_hidden_states=True).hidden_states[1][:, -1].numpy()  # after the first of two blocks
    of = {c: last[(table["condition"] == c).to_numpy()].mean(0) for c in ("joy", "anger", "neutral")}
    found = np.load(tmp_path / "emolab.npy")[:, 0]
    np.testing.assert_allclose(found, [of["joy"] - of["neutral"], of["anger"] - of["neutral"]], atol=1e-6)


def test_peers_are_skipped_in_one_line_where_their_environment_cannot_be_made(tmp_path, monkeypatch):
    peers = script("peers")
    monkeypatch.setattr(peers, "HOME", tmp_path)

    def fail(command, **options):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(peers.subprocess, "run", fail)
    with pytest.raises(SystemExit, match="peers.py skipped"):
        peers.peer_python()
    assert (tmp_path / ".gitignore").read_text() == "*\n"


def test_growth_draws_every_point_and_its_slope():
    growth = script("growth")
    rows = [(q, n, 1 + 0.5 * n, 0.5 * n, 2 + 0.5 * n) for q in growth.UNITS for n in (1, 2, 4)]
    table = pd.DataFrame(rows, columns=["quantity", "n", "median", "low", "high"])
    assert np.allclose(growth.slope(table[table["quantity"] == "heads"]), (0.5, 1))
    fig = growth.draw(table, "footer", dict.fromkeys(growth.UNITS, "work"))
    assert [ax.get_title(loc="left") for ax in fig.axes] == [f"500 ms for one more {u}" for u in growth.UNITS.values()]
    for ax in fig.axes:
        points = next(line for line in ax.lines if line.get_linestyle() == "None")
        assert points.get_xydata().tolist() == [[1, 1.5], [2, 2], [4, 3]]


def test_import_loads_no_heavy_package():
    assert script("startup").loaded() == []


def test_readme_line_rounds_the_results():
    def entry(name, setting, case, ratio):
        return {"name": name, "setting": setting, "rows": [{"case": case, "ratio": ratio}]}

    results = [
        entry("extraction against Hugging Face", "12 layers, d 256", "all sites and heads", 9.0),
        entry("extraction against Hugging Face", "24 layers, d 1024", "all sites and heads", 1.0649),
        entry("grid of 36 steerings", "12 layers, d 256", "one batch", 7.351),
    ]
    line = harness.readme_line(results)
    assert "takes 1.06 times as long" in line and "run 7.4 times as fast" in line


def test_readme_and_page_say_what_was_measured():
    if not harness.RESULTS.exists():
        pytest.skip("nothing was measured yet: make bench")
    results = json.loads(harness.RESULTS.read_text(encoding="utf-8"))
    assert harness.PAGE.read_text(encoding="utf-8") == harness.page(results)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert harness.readme_line(results) in readme, f"README.md should say: {harness.readme_line(results)}"
    assert emolab.__version__ in results[0]["machine"]["versions"]
