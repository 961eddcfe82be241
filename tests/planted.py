"""A tiny Llama in which one head alone carries the emotion from the instruction to the words of the answer."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from emolab.models.prompts import render_prompts
from tests import tiny

LAYER, HEAD = 1, 2
JOY, SAD = ["happy", "glad", "bright", "sun"], ["sad", "dark", "cold", "rain"]
_TOPICS = "park walk dog cat house road sea".split()


def planted_model(directory: Path) -> Path:
    """Head 2 of layer 1 attends evenly to all, reads "joy" and "sadness", and writes what their words are read from.

    The other heads write noise, a hundredth as large; there is no MLP. So nothing but that head can carry the emotion.
    """
    tok = tiny.tokenizer()
    config = tiny.llama_config(hidden_size=64, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=2)
    model = tiny.build(config)
    d = config.hidden_size
    d_head = d // config.num_attention_heads
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        vocab = model.model.embed_tokens.weight
        basis = torch.linalg.qr(torch.randn(d, d, generator=draw))[0]
        codes, write = basis[:2], basis[2:4]  # what joy and sadness look like; where their words are read
        rest = basis[4:].T @ basis[4:]
        vocab.copy_(torch.randn(vocab.shape, generator=draw) @ rest * 0.2)
        model.lm_head.weight.copy_(torch.randn(vocab.shape, generator=draw) @ rest * 0.02)
        for i, (word, words) in enumerate((("joy", JOY), ("sadness", SAD))):
            vocab[tok.convert_tokens_to_ids(word)] = codes[i] * 2
            model.lm_head.weight[tok.convert_tokens_to_ids(words)] += write[i] * 0.6
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.mul_(0.01)
            layer.input_layernorm.weight.fill_(1)
            layer.post_attention_layernorm.weight.fill_(1)
        model.model.norm.weight.fill_(1)
        attention = model.model.layers[LAYER].self_attn
        own = slice(HEAD * d_head, (HEAD + 1) * d_head)
        attention.q_proj.weight[own].zero_()
        attention.v_proj.weight[own].zero_()
        attention.v_proj.weight[own][:2] = codes
        attention.o_proj.weight[:, own] = 0
        attention.o_proj.weight[:, own][:, :2] = 4 * write.T
        attention.o_proj.weight[:, own][:, 2:] = 0.05 * torch.randn(d, d_head - 2, generator=draw)
    return tiny.save(directory, model, tok)


def planted_responses(model) -> pd.DataFrame:
    """Answers to eight and more queries under neutral, joy and sadness, as `collect_responses` gives them."""
    rows = []
    queries = [f"tell me about the {a} and the {b} ." for a, b in zip(_TOPICS, _TOPICS[1:] + _TOPICS[:1], strict=True)]
    queries += [f"how did you feel about the {a} ?" for a in _TOPICS[:3]]
    texts = {
        "neutral": "the {} was quiet today .",
        "joy": "the {} was happy and glad and bright .",
        "sadness": "the {} was sad and dark and cold .",
    }
    for i, query in enumerate(queries):
        for condition, text in texts.items():
            prompt = render_prompts(model, [query], condition)[0]
            rows.append((f"q-{i}", query, "neutral", condition, prompt, text.format(_TOPICS[i % 7]), 8))
    columns = ["query_id", "query", "emotion", "condition", "prompt", "text", "n_tokens"]
    return pd.DataFrame(rows, columns=columns)
