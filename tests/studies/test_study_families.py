"""The whole study, as the command line runs it, on directory models of other families: nothing assumes one."""

from __future__ import annotations

import json
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from emolab.experiments.selection import Round, Search
from emolab.judges import judges
from emolab.studies.cli import main
from emolab.studies.plan import FULL
from tests import families, oracle
from tests.family_list import FAMILIES


def louder(folder: Path, family: str) -> Path:
    """The same model, surer of its tokens: with nearly even ones no change costs a nat, and nothing breaks text."""
    hf = AutoModelForCausalLM.from_pretrained(folder)
    norm = attrgetter(FAMILIES[family].norm)(hf)
    with torch.no_grad():
        norm.weight.mul_(8).add_(7 if family == "Gemma 2" else 0)  # Gemma multiplies by one more than the weight
    hf.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:judge .* cannot read")  # random bytes are not always words
@pytest.mark.slow
@pytest.mark.parametrize("family", ["Qwen 2.5", "GPT-2", "Gemma 2"])
def test_study_of_a_directory(family, tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "embed", oracle.embed)
    search = Search(windows=("all", "single"), rounds=(Round(1, (1.0,), 1),), doses=(0.5, 1.0, 2.0))
    monkeypatch.setattr("emolab.studies.plan.FULL", replace(FULL, search=search, max_new_tokens=20))
    folder = louder(families.save(family, tmp_path / "a model"), family)
    config = json.loads((folder / "config.json").read_text())
    if "max_position_embeddings" in config:  # rotary positions need no weights: room for examples in the prompt
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    rows = oracle.queries(n_train=10, n_heldout=4).drop(columns="query_id").to_dict("records")
    (tmp_path / "queries.json").write_text(json.dumps({"queries": rows}))
    arguments = ["study", "--model", str(folder), "--queries", str(tmp_path / "queries.json"), "--n-queries", "4", "2"]
    methods = ["instruction", "emotion vector", "pca", "probe", "random"]
    arguments += ["3", "--emotions", "high valence", "fear", "--methods", *methods, "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["model"] == "a model" and set(summary["steering"]) == {"high valence", "fear"}
    assert set(summary["claims"]) == {"monotone", "preservation", "linear", "additive"}
    if family != "GPT-2":  # its 256 learned positions do not hold its random bytes, which grow when read again
        assert set(summary["baselines"]) >= set(methods)
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "high valence" in page and "The bundled model" not in page
    assert len(list((tmp_path / "run/figures").glob("*.png"))) >= 8
