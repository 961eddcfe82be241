"""What reading costs beside a bare forward pass of the same tokens: `python benchmarks/extraction.py`.

All sites of all layers (residual stream, attention, MLP, every head), as a user calls it, with tokenizing, planning and
the check that heads add up. The reference is the same model without any hook on ready token tensors, in the same
batches, asked for the last logits only. emolab reads what the prompts of a batch begin with once; "each row whole" is
without that. And how long it takes to read 64 emotions in 8 frames each.
"""

from __future__ import annotations

import time
from unittest import mock

import pandas as pd
import torch
from _harness import arguments, loaded, measure, plain_row, questions, ratios, record

import emolab
from emolab.models import sharing
from emolab.models.model import Model
from emolab.models.prompts import encode, plan_batches
from emolab.vectors.token_rule import prompt_and_text_lengths

BATCH = 24


def answers(model: Model, n: int) -> pd.DataFrame:
    """Answers of one length under six conditions, the conditions in turn."""
    quick = model.name != "smollm2"
    asked = questions(-(-n // 6), quick)
    return emolab.collect_responses(model, asked, max_new_tokens=8 if quick else 40).head(n)


def cases(model: Model, table: pd.DataFrame, batch: int) -> dict:
    prompts, texts = list(table["prompt"]), list(table["text"])
    plan = plan_batches(model, prompt_and_text_lengths(model, table), batch)
    batches = [encode(model, [prompts[i] for i in rows], [texts[i] for i in rows]) for rows in plan]

    def bare():
        with torch.inference_mode():
            for b in batches:
                model.hf(b.input_ids, attention_mask=b.attention_mask, logits_to_keep=1, use_cache=False)

    def means(**options):
        emolab.response_means(model, table, batch_size=batch, **options)

    def whole():
        with mock.patch.object(sharing, "SHARE_FROM", 10**6):
            means()

    return {
        "bare forward": bare,
        "all sites and heads": means,
        "all sites and heads, each row whole": whole,
        "residual stream only": lambda: means(sites=("resid",)),
    }


def frames() -> pd.DataFrame:
    """64 emotions in 8 frames."""
    texts = emolab.load_texts("frames", split="train")
    return emolab.responses_from_texts(texts[texts["topic"].isin(texts["topic"].unique()[:8])])


def main() -> None:
    a = arguments()
    emolab.set_progress(False)
    for dtype in ("float32", "bfloat16"):
        model = loaded(dtype, a.quick)
        table = answers(model, 12 if a.quick else 96)
        seconds = measure(cases(model, table, 4 if a.quick else BATCH), repeats=a.repeats)
        rows = ratios(seconds, against="bare forward", goals={"all sites and heads": ("<=", 1.1)})
        record(f"extraction, {dtype}", rows, setting=f"{len(table)} answers of up to 40 tokens, batches of {BATCH}")
        texts = frames().iloc[::40] if a.quick else frames()
        start = time.perf_counter()
        emolab.extract_vectors(model, texts, sites=("resid", "attn"))
        row = plain_row("64 emotions in 8 frames", round(time.perf_counter() - start, 1), "s", ("<=", 40))
        record(f"reading frames, {dtype}", [row], setting=f"{len(texts)} texts, resid and attn, once")


if __name__ == "__main__":
    main()
