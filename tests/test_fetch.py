"""The default model: how it comes, and what keeps a half-written one from being loaded."""

from __future__ import annotations

import torch

from emolab import fetch
from emolab.generation import generate


def test_the_default_model(smollm2):
    assert (smollm2.name, smollm2.source) == ("smollm2", "smollm2") and smollm2.dtype == torch.float32
    assert (smollm2.n_layers, smollm2.n_heads, smollm2.d_model) == (30, 9, 576) and not smollm2.adds_bos
    assert smollm2.recipe == {"device_map": None, "dtype": "float32", "trust_remote_code": False}
    assert generate(smollm2, "What is the capital of France?", max_new_tokens=8) == ["The capital of France is Paris."]
    assert fetch.find("smollm2") == fetch.fetch("smollm2")
