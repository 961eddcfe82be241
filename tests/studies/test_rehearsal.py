"""A study says within seconds what it cannot do: no answer is written before every step has been tried once."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import transformers

import emolab
from emolab.base.errors import EmolabError
from emolab.experiments.selection import Round, Search
from emolab.judges import judges
from emolab.models.load import load_model
from emolab.steering.settings import Setting, each_layer, each_third, where_measured
from emolab.steering.steering import Steering
from emolab.studies import pipeline
from emolab.studies.plan import FULL
from tests import oracle, tiny

SEARCH = Search(windows=("all", "late", "single"), rounds=(Round(1, (1.0,), 1),), doses=(0.5, 1.0))
PLAN = replace(FULL, search=SEARCH, max_new_tokens=8, n_queries=(4, 2, 3), methods=(), n_claims=0, wordings=False)
# Random weights are no architecture of the table, and say so.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is not among the architectures"),
    pytest.mark.filterwarnings("ignore:judge .* cannot read"),
]
IDS = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)


def hybrid():
    """Attention in the last of four layers."""
    return transformers.Qwen3_5TextConfig(
        vocab_size=len(tiny.tokenizer()), hidden_size=32, intermediate_size=48, num_hidden_layers=4, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, linear_num_value_heads=4,
        linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
        layer_types=["linear_attention"] * 3 + ["full_attention"], **IDS,
    )  # fmt: skip


def state_space():
    return transformers.MambaConfig(
        vocab_size=len(tiny.tokenizer()), hidden_size=32, state_size=8, num_hidden_layers=3, **IDS
    )


def made(config, norm):
    """Surer of its tokens, so that steering can break text; it never ends one, so that all are texts."""
    hf = tiny.build(config, seed=3)
    with torch.no_grad():
        hf.get_submodule(norm).weight.mul_(8)
        hf.lm_head.weight = torch.nn.Parameter(hf.lm_head.weight.clone())
        hf.lm_head.weight[:7] = 0
    return load_model((hf, tiny.tokenizer()))


@pytest.fixture(scope="module")
def qwen():
    return made(hybrid(), "model.norm")


def vectors_of(model, sites):
    texts = {"joy": ["so happy", "glad"], "fear": ["so dark", "cold"], "neutral": ["a dog", "the sun"]}
    return emolab.extract_vectors(model, emolab.responses_from_texts(texts), sites=sites)


@pytest.mark.filterwarnings("ignore:.*has no attn")
def test_layers_without_a_site_are_left_out_and_said(qwen):
    vectors = vectors_of(qwen, ("resid", "attn", "mlp", "head"))
    for site, layers in {"attn": [3], "head": [3], "mlp": [0, 1, 2, 3]}.items():
        assert [layer for layer in range(4) if vectors.get(site)[:, layer].any()] == layers
    with pytest.raises(EmolabError, match="has no site 'attn' in layers 0-2, where .*; layers 3 have it"):
        emolab.generate(qwen, "how ?", steering=Steering(vectors, {"joy": 1.0}, site="attn", layers=[0, 1, 2]))
    for layers in ("all", "late", [3], [0, 3]):
        one = Steering(vectors, {"joy": 4.0}, site="attn", layers=layers)
        assert emolab.generate(qwen, "how ?", steering=one, max_new_tokens=4)
    at_attention = Setting(site="attn")
    assert each_layer(vectors, at_attention) == each_third(vectors, at_attention) == [replace(at_attention, layers=[3])]
    windows = [Setting(site="attn", layers=x) for x in ("all", "late", [0, 1], [3])]
    assert where_measured(vectors, windows) == [windows[3]] and where_measured(vectors, [Setting()]) == [Setting()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*has no attn")
@pytest.mark.parametrize(
    "config, norm, has_attn", [(hybrid, "model.norm", True), (state_space, "backbone.norm_f", False)]
)
def test_models_are_studied_where_they_have_a_site(config, norm, has_attn, tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(judges, "embed", oracle.embed)
    model = made(config(), norm)
    queries = oracle.queries(n_train=10, n_heldout=4)
    with warnings.catch_warnings(action="always"):
        summary = emolab.study(model, out=tmp_path, queries=queries, emotions=("joy", "fear"), plan=PLAN)
    vectors = emolab.EmotionVectors.load(tmp_path / "vectors.safetensors")
    assert ("attn" in vectors.sites) == has_attn and summary["setting"]["site"] in vectors.sites
    assert (tmp_path / "report.html").exists() and set(summary["steering"]) == {"joy", "fear"}
    assert any("site attn is not measured" in str(w.message) for w in recwarn) != has_attn


class Broken(judges.LexiconJudge):
    def __call__(self, texts):
        raise EmolabError("the judge's server does not answer")


@pytest.mark.parametrize(
    "what, says",
    [
        ("judge", "the judge's server does not answer"),
        ("context", "does not fit"),
        ("template", "cannot be used"),
        ("numbers", "are not finite"),
    ],
)
def test_what_would_fail_later_fails_first(what, says, tiny_llama_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "embed", oracle.embed)
    chat = tiny.CHAT.replace("{{ m['content'] }}", "{{ m['content'][:24] }}") if what == "template" else None
    model = load_model(tiny_llama_dir, device="cpu", chat_template=chat)
    judge = Broken({"joy": {"happy"}, "fear": {"dark"}}) if what == "judge" else None
    plan = replace(PLAN, max_new_tokens=10_000) if what == "context" else PLAN
    if what == "numbers":
        model.hf.model.layers[1].mlp.down_proj.weight.data.fill_(torch.inf)
    monkeypatch.setattr(pipeline, "collect_responses", lambda *_, **__: pytest.fail("an answer was written"))
    with pytest.raises(EmolabError, match=says):
        emolab.study(
            model, out=tmp_path / "run", queries=oracle.queries(n_train=10, n_heldout=4), emotions=("joy", "fear"),
            judges=judge, plan=plan,
        )  # fmt: skip
    assert not list((tmp_path / "run").rglob("*.parquet"))
