"""What extraction costs beside a bare forward pass of the same token batches: `python benchmarks/extraction.py`.

All sites (residual stream, attention, MLP, every head) of all layers in one pass, against the same model without any
hook: through the bridge, and as plain Hugging Face model with its own fast attention.
"""

from __future__ import annotations

import pandas as pd
import torch
from _harness import arguments, compare, random_model, record, words

from emolab.activations import _batch_means, response_means
from emolab.models import encode, render_prompts

EMOTIONS = ("neutral", "anger", "disgust", "fear", "joy", "sadness")


def responses(model, n: int, length: int) -> pd.DataFrame:
    rows = []
    for i in range(n):
        query, condition = words(24, i // len(EMOTIONS)), EMOTIONS[i % len(EMOTIONS)]
        prompt = render_prompts(model, [query], condition)[0]
        rows.append((f"q{i // len(EMOTIONS)}", query, "neutral", condition, prompt, words(length, 1000 + i)))
    return pd.DataFrame(rows, columns=["query_id", "query", "emotion", "condition", "prompt", "text"])


def main() -> None:
    a = arguments()
    sizes = [(12, 256)] if a.quick else [(12, 256), (24, 1024)]
    for n_layers, d_model in sizes:
        model = random_model(n_layers, d_model)
        table = responses(model, 24 if a.quick else 48 if d_model < 512 else 16, 100)
        prompts, texts = list(table["prompt"]), list(table["text"])
        batches = [(prompts[i : i + 8], texts[i : i + 8]) for i in range(0, len(texts), 8)]

        def bridge(batches=batches, model=model):
            for p, t in batches:
                b = encode(model, p, t)
                with torch.inference_mode():
                    model.bridge(b.input_ids, attention_mask=b.attention_mask, logits_to_keep=1, use_cache=False)

        def plain(batches=batches, model=model):
            for p, t in batches:
                b = encode(model, p, t)
                with torch.inference_mode():
                    model.hf(b.input_ids, attention_mask=b.attention_mask, logits_to_keep=1, use_cache=False)

        def pass_only(batches=batches, model=model):
            for p, t in batches:
                _batch_means(model, p, t, {"resid", "attn", "mlp", "head"})

        def whole(table=table, model=model):
            response_means(model, table, batch_size=8, progress=False)

        plainly = "bare Hugging Face (sdpa)"
        cases = {"bare bridge": bridge, plainly: plain, "one pass": pass_only, "response_means": whole}
        n_tokens = encode(model, prompts[:1], texts[:1]).input_ids.shape[1]
        setting = f"{n_layers} layers, d {d_model}, batch 8, {n_tokens} tokens"
        for against, goal in (("bare bridge", "1.10 x"), (plainly, "1.25 x at d 256, 1.10 x at d 1024")):
            kept = {k: f for k, f in cases.items() if k == against or not k.startswith("bare")}
            rows = compare(kept, against=against, repeats=a.repeats)
            record(f"extraction against {against}", rows, setting=setting, goal=goal)


if __name__ == "__main__":
    main()
