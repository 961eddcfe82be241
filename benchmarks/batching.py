"""Batches by length against batches in file order, prompts that many rows share, and rows that end early.

`python benchmarks/batching.py`. emolab sorts rows by length before it cuts batches (`plan_batches`), and a sweep writes
equal texts once. In file order means: batch by batch as the rows stand in the table, with every row written. With "all
texts of 68 tokens" no order helps: the control. In "rows that have ended" one word in ENDS ends an answer, so that rows
end at different tokens, and those that repeat themselves never. About 3 minutes on two cores.
"""

from __future__ import annotations

from unittest import mock

import pandas as pd
import torch
from _harness import CUDA, WORDS, arguments, measure, plain_row, random_model, ratios, record, text
from extraction import EMOTIONS
from steering import vectors

import emolab
from emolab import Steering, Writing, generate, response_means
from emolab.answers import decoding

BATCH = 32 if CUDA else 8
NEW, LONG = 16, 80
ENDS = 4
ALPHAS = (0.0, 1.0, 2.0, 4.0)


def lengths(n: int, low: int, high: int) -> list[int]:
    """Evenly spread from low to high, in random order."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
    return [low + round((high - low) * i / max(1, n - 1)) for i in order]


def mixed(sizes: list[int]) -> pd.DataFrame:
    rows = [(EMOTIONS[i % len(EMOTIONS)], text(8, i), text(n, 10_000 + i)) for i, n in enumerate(sizes)]
    return pd.DataFrame(rows, columns=["condition", "prompt", "text"])


def extraction_cases(model, table: pd.DataFrame) -> dict:
    def by_length():
        response_means(model, table, batch_size=BATCH)

    def in_order():
        with mock.patch("emolab.vectors.activations.plan_batches", slices):
            by_length()

    return {"file order": in_order, "by length": by_length}


def slices(model, lengths, batch_size=None):
    """In place of `plan_batches`: the rows as they stand."""
    return [list(range(i, min(i + BATCH, len(lengths)))) for i in range(0, len(lengths), BATCH)]


def sweep_cases(model, queries: pd.DataFrame, texts: dict) -> dict:
    ev = vectors(model)

    def by_length():
        options = {"alphas": ALPHAS, "controls": (), "max_new_tokens": NEW, "writing": Writing(batch_size=BATCH)}
        texts["by length"] = emolab.sweep(model, ev, queries, **options)

    def in_order():
        table = texts["by length"]
        steerings = {(e, x): Steering(ev, {e: x}) if x else None for e in ev.emotions for x in ALPHAS}
        rows = [steerings[key] for key in zip(table["emotion"], table["alpha"], strict=True)]
        found = []
        for i in range(0, len(rows), BATCH):
            options = {"steering": rows[i : i + BATCH], "max_new_tokens": NEW, "writing": Writing(batch_size=BATCH)}
            found += generate(model, list(table["query"][i : i + BATCH]), **options)
        texts["file order"] = found

    by_length()  # its table is what the other case replays
    return {"file order": in_order, "by length, unsteered once": by_length}


def prefix_cases(model, n: int, prompt: int, texts: dict) -> dict:
    """n steerings of one prompt, which is read in every row, or once."""
    ev = vectors(model)
    steerings = [Steering(ev, {ev.emotions[i % len(ev.emotions)]: 1 + i / n}, site="attn") for i in range(n)]

    def shared(case="read once, shared"):
        options = {"steering": steerings, "max_new_tokens": NEW, "writing": Writing(batch_size=n)}
        texts[case] = generate(model, [text(prompt, 0)] * n, **options)

    def whole():
        with mock.patch.object(decoding, "SHARE_FROM", prompt + 100):
            shared("each row reads the prompt")

    return {"each row reads the prompt": whole, "read once, shared": shared}


def ending_cases(model, n: int, texts: dict) -> dict:
    """n steerings of prompts of 32 tokens, whose answers end at different tokens, or not before LONG."""
    ev, prompts = vectors(model), [text(32, i % 12) for i in range(n)]
    steerings = [Steering(ev, {ev.emotions[i % len(ev.emotions)]: 1 + i / n}, site="attn") for i in range(n)]

    def leave(case="those that have ended leave"):
        with mock.patch.object(model.hf.generation_config, "eos_token_id", list(range(ENDS, WORDS, ENDS))):
            writing = Writing(batch_size=n)
            texts[case] = generate(model, prompts, steering=steerings, max_new_tokens=LONG, writing=writing)

    def stay():
        with mock.patch.object(decoding, "_MANY", n + 1):
            leave("all stay to the last end")

    return {"all stay to the last end": stay, "those that have ended leave": leave}


def main() -> None:
    a = arguments()
    n_layers, d_model, dtype, n = (4, 128, "float32", 24) if a.quick else (12, 256, "float32", 96)
    if CUDA and not a.quick:
        n_layers, d_model, dtype, n = 16, 2048, "bfloat16", 384
    model, repeats = random_model(n_layers, d_model, dtype=dtype), min(a.repeats, 3)
    size = f"{n_layers} layers, d {d_model}, {dtype}, batch {BATCH}"
    for told, sizes in (("texts of 8 to 128 tokens", lengths(n, 8, 128)), ("all texts of 68 tokens", [68] * n)):
        seconds = measure(extraction_cases(model, mixed(sizes)), repeats=repeats)
        rows = ratios(seconds, against="file order", speed=True)
        record("extraction in batches by length", rows, setting=f"{size}, {told}")

    texts: dict = {}
    queries = [text(k, i) for i, k in enumerate(lengths(2 if a.quick else 8, 8, 128))]
    table = pd.DataFrame({"query_id": [f"q{i}" for i in range(len(queries))], "query": queries, "emotion": "neutral"})
    table["situation"] = table["query_id"]
    seconds = measure(sweep_cases(model, table, texts), repeats=repeats)
    goals = {"by length, unsteered once": (">", 1)}
    rows = ratios(seconds, against="file order", goals=goals, speed=True)
    same = sum(x == y for x, y in zip(texts["file order"], texts["by length"]["text"], strict=True))
    rows.append(plain_row("equal greedy texts", same, f"of {len(texts['by length'])}", (">=", len(texts["by length"]))))
    setting = f"{size}, {len(queries)} queries of 8 to 128 tokens, 5 emotions, {len(ALPHAS)} doses, {NEW} new tokens"
    record("sweep against file order", rows, setting=setting)

    for prompt in (32,) if a.quick else (32, 256):
        texts = {}
        seconds = measure(prefix_cases(model, 36, prompt, texts), repeats=repeats)
        goals = {"read once, shared": (">", 1)}
        rows = ratios(seconds, against="each row reads the prompt", goals=goals, speed=True)
        same = sum(x == y for x, y in zip(*texts.values(), strict=True))
        rows.append(plain_row("equal greedy texts", same, "of 36", (">=", 36)))
        setting = f"{n_layers} layers, d {d_model}, {dtype}, 36 steerings of a prompt of {prompt}, {NEW} new tokens"
        record("shared prompt prefix", rows, setting=setting)

    texts, n = {}, 36 if a.quick else 128
    seconds = measure(ending_cases(model, n, texts), repeats=repeats)
    rows = ratios(
        seconds, against="all stay to the last end", goals={"those that have ended leave": (">", 1)}, speed=True
    )
    same = sum(x == y for x, y in zip(*texts.values(), strict=True))
    rows.append(plain_row("equal greedy texts", same, f"of {n}", (">=", n)))
    words = [len(x.split()) for x in texts["those that have ended leave"]]
    rows.append(plain_row("mean words of an answer", round(sum(words) / n, 1), f"of at most {LONG}"))
    setting = f"{n_layers} layers, d {d_model}, {dtype}, batch {n}, up to {LONG} new tokens"
    record("rows that have ended", rows, setting=setting)


if __name__ == "__main__":
    main()
