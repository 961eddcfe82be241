"""The seam that puts functions at sites, where an architecture does not hand on [row, token, d_model]."""

from __future__ import annotations

import pytest
import torch
from transformers import GraniteMoeHybridConfig, Llama4TextConfig, OPTConfig

from emolab.answers.responses import responses_from_texts
from emolab.base.errors import EmolabError
from emolab.models.hooks import at_sites, forward
from emolab.models.load import load_model
from emolab.models.prompts import Batch, encode
from emolab.models.sites import check_bridge, hf_modules
from emolab.steering.edits import hooked
from emolab.steering.steering import Steering, build_edits
from emolab.vectors.activations import response_means
from tests import tiny

SHAPE = dict(
    vocab_size=len(tiny.tokenizer()), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2,
)  # fmt: skip
QUERIES = ["tell me about the park .", "how ?", "was the dog sad when we saw the sea ?"]


@pytest.fixture(scope="module", params=["Llama 4", "OPT"])
def flat(request):
    """Experts, and an MLP, that hand on all tokens of a batch in one line: [row * token, d_model]."""
    if request.param == "OPT":
        config = OPTConfig(**SHAPE, ffn_dim=48, word_embed_proj_dim=32)
    else:
        config = Llama4TextConfig(
            **SHAPE, num_key_value_heads=2, head_dim=8, intermediate_size=48, intermediate_size_mlp=48,
            num_local_experts=4, interleave_moe_layer_step=1, no_rope_layers=[1, 1],
        )  # fmt: skip
    return load_model((tiny.build(config, seed=3), tiny.tokenizer()), device="cpu")


def outputs(model, batch: Batch, plain: bool, functions) -> torch.Tensor:
    """What the MLP of layer 1 hands on behind these functions, as its module gives it."""
    root, seen = model.hf if plain else model.bridge.original_model, []
    [(module, side)] = hf_modules(model, "mlp", [1])
    name = {id(m): name for name, m in model.hf.named_modules()}[id(module)]
    with at_sites(model, functions, plain=plain) as runner, torch.inference_mode():
        keep = lambda m, a, y: seen.append(y[0] if isinstance(y, tuple) else y)  # noqa: E731
        handle = root.get_submodule(name).register_forward_hook(keep)
        forward(model, runner, batch, keep=1)
        handle.remove()
    assert side == "output" and runner is root
    return seen[0]


@pytest.mark.parametrize("plain", [True, False])
def test_all_tokens_in_one_line_are_read_and_steered_by_row(flat, plain):
    batch, seen = encode(flat, QUERIES), []
    rows, tokens = batch.input_ids.shape
    before = outputs(flat, batch, plain, [(("mlp", 1), lambda x: seen.append(x.clone()))])
    assert before.shape == (rows * tokens, 32) and seen[0].shape == (rows, tokens, 32)
    assert torch.equal(seen[0], before.view(rows, tokens, 32))
    shift = torch.arange(1.0, rows + 1)[:, None, None]  # another number for each row
    after = outputs(flat, batch, plain, [(("mlp", 1), lambda x: x + shift)])
    assert torch.equal(after, (seen[0] + shift).flatten(0, 1))


def test_rows_that_nobody_counted_are_refused(flat):
    """From embeddings the number of rows is not known, and a line of tokens is not taken for one row."""
    steering = Steering(tiny.random_vectors(flat), {"joy": 1.0}, site="mlp", positions="all")
    states = flat.hf.get_input_embeddings()(encode(flat, QUERIES).input_ids)
    with pytest.raises(EmolabError, match=r"at mlp of layer 0 has shape \[\d+, 32\], expected \[row, token, d_model\]"):
        with hooked(flat, build_edits(flat, [steering]), plain=True) as runner:
            runner(inputs_embeds=states)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda y: [y], "hands on a list at site 'resid', expected a tensor"),
        (lambda y: y[:, :, None], r"at resid of layer 0 has shape \[3, \d+, 1, 32\], expected \[row, token, d_model\]"),
    ],
)
def test_blocks_that_hand_on_something_else_are_refused(tiny_llama, change, told):
    handle = tiny_llama.hf.model.layers[0].register_forward_hook(lambda module, args, y: change(y))
    try:
        with pytest.raises(EmolabError, match=told):
            with at_sites(tiny_llama, [(("resid", 0), lambda x: None)], plain=True) as runner:
                forward(tiny_llama, runner, encode(tiny_llama, QUERIES), keep=1)
    finally:
        handle.remove()


def test_a_model_without_rotation_is_given_none():
    """Granite 4 H: TransformerLens puts an empty shell in its place, which the model then calls."""
    config = GraniteMoeHybridConfig(
        **SHAPE, num_key_value_heads=2, intermediate_size=48, shared_intermediate_size=24, num_local_experts=0,
        layer_types=["mamba", "attention"], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_expand=2,
        residual_multiplier=0.5,
    )  # fmt: skip
    model = load_model((tiny.build(config, seed=3), tiny.tokenizer()), device="cpu")
    ids = encode(model, QUERIES[:1]).input_ids
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), model.hf(ids).logits, atol=1e-5, rtol=1e-5)
    check_bridge(model)


def test_a_bridge_that_cannot_run_is_refused_in_one_line(tiny_llama_dir, monkeypatch):
    model = load_model(tiny_llama_dir, device="cpu")

    def broken(*args, **options):
        raise RuntimeError("Original component not set.\nCall somebody.")

    monkeypatch.setattr(model.bridge, "forward", broken)
    texts = responses_from_texts({"joy": ["happy dog ."], "neutral": ["a road ."]})
    with pytest.raises(EmolabError, match=r"TransformerLens cannot run .* in float32: Original component not set\.$"):
        response_means(model, texts, sites=("resid",))
