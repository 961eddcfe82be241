"""What extraction costs beside a bare forward pass of the same token batches: `python benchmarks/extraction.py`.

All sites (residual stream, attention, MLP, every head) of all layers in one pass, as a user calls it, with tokenizing,
planning and the check that heads add up. References: the same model without any hook, through the bridge and as plain
Hugging Face model with its own fast attention (sdpa), on ready token tensors, both asked for the last logits only.
All texts have 128 tokens, so that every case runs the very same batches. About 8 minutes on two cores.
"""

from __future__ import annotations

import pandas as pd
import torch
from _harness import CUDA, arguments, measure, random_model, ratios, record, sizes, text

from emolab.models.prompts import encode
from emolab.vectors.activations import response_means

EMOTIONS = ("neutral", "anger", "disgust", "fear", "joy", "sadness")
BATCH, PROMPT, ANSWER = (32 if CUDA else 8), 28, 100


def responses(n: int, *, prompt: int = PROMPT, answer: int = ANSWER) -> pd.DataFrame:
    """n texts of `answer` tokens behind prompts of `prompt` tokens, the conditions in turn."""
    rows = []
    for i in range(n):
        query = text(prompt, i // len(EMOTIONS))
        condition = EMOTIONS[i % len(EMOTIONS)]
        rows.append((f"q{i // len(EMOTIONS)}", query, "neutral", condition, query, text(answer, 10_000 + i)))
    return pd.DataFrame(rows, columns=["query_id", "query", "emotion", "condition", "prompt", "text"])


def cases(model, table: pd.DataFrame, batch: int) -> dict:
    prompts, texts = list(table["prompt"]), list(table["text"])
    starts = range(0, len(texts), batch)
    batches = [encode(model, prompts[i : i + batch], texts[i : i + batch]) for i in starts]
    assert len({b.input_ids.shape for b in batches}) == 1  # equal work: nothing padded, nothing sorted

    def bare(runner):
        with torch.inference_mode():
            for b in batches:
                runner(b.input_ids, attention_mask=b.attention_mask, logits_to_keep=1, use_cache=False)

    def means(**options):
        response_means(model, table, batch_size=batch, **options)

    return {
        "bare bridge": lambda: bare(model.bridge),
        "bare Hugging Face": lambda: bare(model.hf),
        "all sites and heads": means,
        "residual stream only": lambda: means(sites=("resid",)),
    }


def main() -> None:
    a = arguments()
    for n_layers, d_model, dtype in sizes(a.quick):
        model, large = random_model(n_layers, d_model, dtype=dtype), d_model > 512
        table = responses(BATCH * (3 if a.quick or (large and not CUDA) else 12))
        seconds = measure(cases(model, table, BATCH), repeats=-(-a.repeats // 2) if large else a.repeats)
        setting = f"{n_layers} layers, d {d_model}, {dtype}, batch {BATCH}, {PROMPT + ANSWER} tokens"
        for reference, goal in (("bare bridge", 1.10), ("bare Hugging Face", 1.10 if large else 1.25)):
            kept = {k: v for k, v in seconds.items() if k == reference or not k.startswith("bare")}
            rows = ratios(kept, against=reference, goals={"all sites and heads": ("<=", goal)})
            name = f"extraction against {'the bridge' if reference == 'bare bridge' else 'Hugging Face'}"
            record(name, rows, setting=setting)


if __name__ == "__main__":
    main()
