"""`emolab info --check`: sound models pass every check, and each check can fail."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
import transformers
from transformers import FalconConfig, JetMoeConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from emolab.base.errors import EmolabError
from emolab.models import load
from emolab.models.load import load_model
from emolab.models.sites import CHECKED
from emolab.studies import selfcheck
from emolab.studies.cli import main
from emolab.studies.selfcheck import CHECKS, check_model
from tests import families, tiny
from tests.family_list import FAMILIES


def failed(model, *names: str) -> list[str]:
    """Which checks fail, of these or of all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selfcheck, "CHECKS", {name: CHECKS[name] for name in names or CHECKS})
        return [check.name for check in check_model(model) if check.state == "FAILED"]


@pytest.fixture
def own(tiny_llama_dir):
    """A model of one's own, to be broken."""
    return load_model(tiny_llama_dir, device="cpu")


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_a_sound_model_passes(name, request):
    model = request.getfixturevalue(name)
    found = check_model(model)
    assert {check.state for check in found} <= {"ok", "note"} and [c.name for c in found[1:]] == list(CHECKS)
    told = {check.name: check.told for check in found}
    assert f"context {model.n_ctx}" in told["model"] and "float32 on cpu" in told["model"]
    assert f"chat template: {'yes' if name == 'tiny_llama' else 'no'}" in told["model"] and "(tested)" in told["model"]
    assert "3 of 3 equal" in told["batches"]
    assert all("\n" not in str(check) for check in found)
    assert failed(load_model(model.bridge, tokenizer=model.tokenizer)) == []  # the user's own bridge


def test_a_sound_model_passes_in_half_precision(tiny_llama_dir):
    assert failed(load_model(tiny_llama_dir, dtype="bfloat16", device="cpu")) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this model.s template ends in")  # told by gpt-oss
@pytest.mark.filterwarnings("ignore:.* in layers .*; means and vectors are zero there")  # of hybrids
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes(name, tmp_path):
    model = load_model(families.save(name, tmp_path), device="cpu")
    assert failed(model) == []


def test_bridge_that_computes_something_else():
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    hf = tiny.build(FalconConfig(vocab_size=len(tiny.tokenizer()), alibi=True, **shape))
    assert failed(load_model((hf, tiny.tokenizer())), "bridge and model agree", "BOS") == ["bridge and model agree"]


def test_padding_that_is_seen(own, monkeypatch):
    forward = own.hf.forward
    monkeypatch.setattr(own.hf, "forward", lambda *a, attention_mask=None, **k: forward(*a, **k))
    same, told = CHECKS["batches"](own)
    assert not same and told.startswith("answers depend on the batch (")


def test_cache_that_changes_answers(own, monkeypatch):
    forward = own.hf.forward

    def shifted(*args, past_key_values=None, position_ids=None, **options):
        late = past_key_values is not None and past_key_values.get_seq_length() > 0
        position_ids = position_ids if position_ids is None or not late else position_ids + 9
        return forward(*args, past_key_values=past_key_values, position_ids=position_ids, **options)

    shifted.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(own.hf, "forward", shifted)
    assert failed(own, "cache", "batches") == ["cache"]


def test_steering_that_reaches_further(own, monkeypatch):
    real = selfcheck.build_edits

    def everywhere(model, rows, spans):
        edits = real(model, rows, spans)
        return {("resid", i): edit for edit in edits.values() for i in (0, 1)}

    monkeypatch.setattr(selfcheck, "build_edits", everywhere)
    assert failed(own, "steering is exact and local", "finite") == ["steering is exact and local"]


def test_heads_that_do_not_add_up(own, monkeypatch):
    monkeypatch.setattr("emolab.vectors.reading.output_weight", lambda model, layer, dtype: torch.ones(4, 8, 32))
    assert failed(own) == ["heads add up to attention"]


def test_two_bos(own, monkeypatch):
    real = selfcheck.render_prompts
    monkeypatch.setattr(selfcheck, "render_prompts", lambda *a: ["<bos>" + p for p in real(*a)])
    assert failed(own, "BOS", "prompt and answer") == ["BOS"]


def test_a_tokenizer_that_joins_prompt_and_answer_is_a_note(own):
    assert CHECKS["prompt and answer"](own)[0] is True
    own.tokenizer.chat_template = own.tokenizer.chat_template.replace("<assistant>", "<assistant> so")
    assert CHECKS["prompt and answer"](own)[0] is None  # "so" and "There" become one word


def test_what_is_not_finite(own):
    with torch.no_grad():
        own.hf.model.layers[1].mlp.down_proj.weight[0] = float("nan")
    found = failed(own, "finite", "steering is exact and local", "BOS")
    assert found == ["finite", "steering is exact and local"]


def test_ties_that_rounding_decides_are_no_fault(tiny_llama, monkeypatch):
    texts = iter(["a dog", "a cat"] * 4)
    monkeypatch.setattr(selfcheck, "generate", lambda *a, **k: [next(texts)])
    monkeypatch.setattr(selfcheck, "token_logprobs", lambda *a, **k: [[-0.1, -0.7], [-0.1, -0.7 - 1e-5]])
    assert selfcheck._gap(tiny_llama, "how", "a dog", "a cat") == pytest.approx(1e-5)
    same, told = selfcheck._same(tiny_llama, ["how"], (["a dog"], ["a cat"], ["a dog"]), "answers do not part")
    assert same and told.startswith("answers do not part (0 of 1 equal, the others part where two tokens are 1e-05")
    assert selfcheck._gap(tiny_llama, "how", "a dog", "a dog") == 0.0
    assert selfcheck._gap(tiny_llama, "how", "a", "a dog") == float("inf")


# --- on load


def test_the_tested_architectures_are_those_of_the_page():
    configs = [getattr(transformers, family.config) for family in FAMILIES.values()]
    assert {MODEL_FOR_CAUSAL_LM_MAPPING[config].__name__ for config in configs} == set(CHECKED)
    assert len(CHECKED) == len(set(CHECKED))


def new_architecture():
    fields = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_key_value_heads=2, kv_channels=8)
    config = JetMoeConfig(vocab_size=len(tiny.tokenizer()), num_local_experts=4, num_experts_per_tok=2, **fields)
    return tiny.build(config), tiny.tokenizer()


def test_a_new_architecture_gets_one_line():
    with pytest.warns(UserWarning) as seen:
        model = load_model(new_architecture())
    [line] = [str(w.message) for w in seen if "not among" in str(w.message)]
    assert line.startswith("JetMoeForCausalLM is not among the architectures that emolab is tested on: padding does")
    assert "does not change its logits" in line and "\n" not in line and seen[-1].filename == __file__
    assert "(not among the tested ones)" in str(check_model(model)[0])


def test_a_new_architecture_whose_batches_differ_is_told(monkeypatch):
    def by_width(model, runner, batch, keep):
        return torch.full((len(batch.input_ids), 1, 7), float(batch.input_ids.shape[1])) + torch.arange(7)

    monkeypatch.setattr(load, "forward", by_width)
    with pytest.warns(UserWarning, match="padding changes its logits by .* of their spread; use batch_size=1"):
        load_model(new_architecture())

    def broken(*args, **options):
        raise RuntimeError("no such\nattention")

    monkeypatch.setattr(load, "forward", broken)
    with pytest.warns(UserWarning, match=r"its batches cannot be checked \(no such\); use batch_size=1"):
        load_model(new_architecture())


def test_a_known_architecture_is_not_checked_on_load(tiny_llama_dir, monkeypatch):
    def never(model):
        raise AssertionError("checked")

    monkeypatch.setattr(load, "_padding", never)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(tiny_llama_dir, device="cpu")


# --- on the command line


def test_info_check(tiny_llama_dir, capsys, monkeypatch):
    assert main(["info", "--check", str(tiny_llama_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CHECKS) + 1 and all(line.startswith(("ok ", "note ")) for line in lines)
    monkeypatch.setitem(CHECKS, "cache", lambda model: (False, "off by 3"))

    def refuses(model):
        raise EmolabError("cannot")

    monkeypatch.setitem(CHECKS, "BOS", refuses)
    assert main(["info", "--check", str(tiny_llama_dir)]) == 2
    out, err = capsys.readouterr()
    assert "FAILED  cache: off by 3" in out and "FAILED  BOS: cannot" in out
    assert "fails 2 of 9 checks: cache, BOS" in err
    assert main(["info"]) == 2 and "--check MODEL" in capsys.readouterr().err
