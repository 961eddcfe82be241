"""What a head looks at while the model answers."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from emolab.base.errors import EmolabError
from emolab.base.labels import head_name
from emolab.models.finite import need_finite
from emolab.models.model import Model
from emolab.models.prompts import check_context, encode


def attention_pattern(model: Model, prompt: str, text: str, *, layer: int, head: int) -> pd.DataFrame:
    """One head's attention from the positions that write `text` after a complete prompt, token by token.

    >>> pattern = attention_pattern(model, responses["prompt"][1], responses["text"][1], layer=3, head=4)
    >>> pattern.groupby("token")["weight"].sum().nlargest(5)
    >>> emolab.plot.attention_html(pattern)

    Columns: `from_position`, `next_token` (what is written there), `position`, `token` (what is looked at), `weight`;
    the weights of each `from_position` sum to 1. Attention shows where a head reads, not what its reading does: see
    `head_effects` for that. Raises EmolabError for a head that does not exist, a text without a token, and an
    architecture that shows no attention patterns.
    """
    if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
        raise EmolabError(
            f"no head {head_name(layer, head)}; there are {model.n_layers} layers of {model.n_heads} heads"
        )
    name = f"blocks.{layer}.attn.hook_pattern"
    if name not in model._hook_names:
        raise EmolabError(f"{model.name!r} has no hook point {name}; its architecture shows no attention patterns")
    batch = encode(model, [prompt], [text])
    check_context(model, batch.input_ids.shape[1])
    patterns: list[Tensor] = []

    def keep(x, hook):
        patterns.append(x[0, head].float().cpu())

    with torch.inference_mode(), model.bridge.hooks(fwd_hooks=[(name, keep)]):
        model.bridge(batch.input_ids, attention_mask=batch.attention_mask, logits_to_keep=1)
    need_finite(model, patterns, "the attention weights", prompt=prompt)
    ids = batch.input_ids[0].tolist()
    n, n_answer = len(ids), int(batch.response_mask[0].sum())
    if not n_answer:
        raise EmolabError("the text has no token; attention is read from the positions of an answer")
    names = [model.tokenizer.decode([i]) for i in ids]
    rows = [
        (i, names[i + 1], j, names[j], float(patterns[0][i, j]))
        for i in range(n - n_answer - 1, n - 1)
        for j in range(i + 1)
    ]
    table = pd.DataFrame(rows, columns=["from_position", "next_token", "position", "token", "weight"])
    table.attrs |= {"layer": layer, "head": head, "tokens": names}
    return table
