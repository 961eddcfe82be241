"""The same greedy tokens from the plain twin and from the bridge, steered by hooks that a test puts there itself."""

from __future__ import annotations

import torch

from emolab.models.prompts import encode, render_prompts
from emolab.steering.edits import hooked
from emolab.steering.steering import build_edits


def tokens_on_both(model, queries, steering, *, max_new_tokens: int) -> list[torch.Tensor]:
    """[twin, bridge]: token ids [row, prompt and answer] from Hugging Face's own loop."""
    batch = encode(model, render_prompts(model, queries))
    own = batch.attention_mask.sum(1)
    prompts = [(batch.prompt_len - n, n) for n in own.tolist()]
    tokens = []
    for plain, runner in ((True, model.hf), (False, model.bridge.original_model)):
        with hooked(model, build_edits(model, [steering], prompts, cached=True), plain=plain):
            tokens.append(
                runner.generate(
                    batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=max_new_tokens,
                    do_sample=False, pad_token_id=2,
                )
            )  # fmt: skip
    return tokens
