"""A grid of settings, written and scored, beside a loop over Hugging Face's `generate`: `python benchmarks/grid.py`.

60 settings (5 emotions at 2 sites with 6 doses) of 8 questions, 60 tokens each. The loop is what one writes by hand
with forward hooks: it puts one setting on the model, as `from_pretrained(...).eval()` gives it, writes its batch of 8,
and scores it in the same way: the judge and what is counted of words by `emolab.score` itself, and both perplexities by
a forward pass of the batch behind the prompt without and with the instruction. Both greedy, with the same repetition
penalty, both in bfloat16. How long scoring takes beside writing is read in the same run. One round: minutes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pandas as pd
import torch
from _harness import arguments, directions, loaded, plain_row, questions, ratios, record
from writing import plain

import emolab
from emolab import Setting
from emolab.models.model import Model
from emolab.models.prompts import encode, render_prompts

SITES, DOSES = ("attn", "resid"), {"attn": (0.5, 1, 1.5, 2, 2.5, 3), "resid": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)}
NEW = 60


def settings(model: Model, quick: bool) -> list[tuple[str, str, float]]:
    """(site, emotion, dose) of every setting."""
    emotions = directions(model).emotions[: 2 if quick else 5]
    return [(site, e, x) for site in SITES for e in emotions for x in DOSES[site][: 2 if quick else 6]]


@contextmanager
def hooks(hf, vectors, site: str, emotion: str, dose: float) -> Iterator[None]:
    """As one writes them by hand: dose times the vector, added to the output of the later half of the layers."""

    def adding(shift):
        def hook(module, args, output):
            return (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift

        return hook

    with ExitStack() as stack:
        layers = hf.model.layers
        for i in range(len(layers) // 2, len(layers)):
            module = layers[i].self_attn if site == "attn" else layers[i]
            shift = (dose * vectors.get(site, emotion=emotion)[i]).to(hf.dtype)
            stack.callback(module.register_forward_hook(adding(shift)).remove)
        yield


def by_hand(model: Model, hf, asked: pd.DataFrame, grid: list, new: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """The loop: its scored texts, and the seconds that it took to write and to score."""
    vectors, spent, tables = directions(model), {"written": 0.0, "scored": 0.0}, []
    prompts = render_prompts(model, list(asked["query"]))
    ready = encode(model, prompts)
    options = {"max_new_tokens": new, "do_sample": False, "repetition_penalty": 1.1, "pad_token_id": 0}
    for site, emotion, dose in grid:
        start = time.perf_counter()
        with hooks(hf, vectors, site, emotion, dose):
            ids = hf.generate(ready.input_ids, attention_mask=ready.attention_mask, **options)
        texts = model.tokenizer.batch_decode(ids[:, ready.input_ids.shape[1] :], skip_special_tokens=True)
        written = time.perf_counter()
        table = emolab.score(pd.DataFrame({"text": [t.strip() for t in texts], "query": list(asked["query"])}))
        told = render_prompts(model, list(asked["query"]), emotion)
        table["perplexity"] = perplexities(model, hf, prompts, list(table["text"]))
        table["perplexity_instructed"] = perplexities(model, hf, told, list(table["text"]))
        tables.append(table.assign(emotion=emotion, site=site, alpha=dose))
        spent["written"] += written - start
        spent["scored"] += time.perf_counter() - written
    return pd.concat(tables), spent


@torch.no_grad()
def perplexities(model: Model, hf, prompts: list[str], texts: list[str]) -> list[float]:
    batch = encode(model, prompts, texts)
    logits = hf(batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1].float().log_softmax(-1)
    picked = logits.gather(-1, batch.input_ids[:, 1:, None])[..., 0]
    own = batch.response_mask[:, 1:]
    return [float(torch.exp(-row[mask].mean())) for row, mask in zip(picked, own, strict=True)]


def ours(model: Model, asked: pd.DataFrame, grid: list, new: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """The same by `sweep` and `score`."""
    vectors, start = directions(model), time.perf_counter()
    tables = []
    for site, rows in itertools.groupby(grid, key=lambda x: x[0]):
        _, emotions, doses = zip(*rows, strict=True)
        at = emolab.at(vectors, Setting(site=site, layers="late"), list(dict.fromkeys(emotions)))
        options = {"alphas": tuple(dict.fromkeys(doses)), "controls": (), "max_new_tokens": new}
        tables.append(emolab.sweep(model, at, asked, **options))
    written = time.perf_counter()
    scored = pd.concat([emolab.score(table, model=model) for table in tables])
    return scored, {"written": written - start, "scored": time.perf_counter() - written}


def main() -> None:
    a = arguments()
    new = 8 if a.quick else NEW
    model = loaded("bfloat16", a.quick)
    hf, asked, grid = plain(model), questions(2 if a.quick else 8, a.quick), settings(model, a.quick)
    emolab.set_progress(False)
    for run in (ours, lambda model, *rest: by_hand(model, hf, *rest)):  # what a first call alone does
        run(model, asked.head(2), grid[:1], 4)
    table, mine = ours(model, asked, grid, new)
    theirs_table, theirs = by_hand(model, hf, asked, grid, new)
    assert len(table[table["alpha"] != 0]) == len(theirs_table) == len(grid) * len(asked)
    setting = f"bfloat16, {len(grid)} settings x {len(asked)} questions, {new} tokens"
    seconds = {"a loop with hooks": [sum(theirs.values())], "emolab": [sum(mine.values())]}
    rows = ratios(seconds, against="a loop with hooks", goals={"emolab": (">=", 6)}, speed=True)
    for part in ("written", "scored"):
        rows.append(plain_row(f"{part}: a loop with hooks", round(theirs[part], 1), "s"))
        rows.append(plain_row(f"{part}: emolab", round(mine[part], 1), "s"))
    record("a grid, written and scored", rows, setting=setting, note="One round.")
    row = plain_row("scoring over writing", round(mine["scored"] / mine["written"], 3), "x", ("<=", 0.5))
    record("scoring a sweep", [row], setting=setting, note="Perplexity twice, judge, adherence, repetition.")


if __name__ == "__main__":
    main()
