"""How long a study will take on this machine: measured before it begins, and said.

>>> pace = measure_pace(model)
>>> sum(expect(model, FULL, sizes, 5, pace).values()) / 60          # minutes # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from emolab.answers.generation import generate
from emolab.answers.logprobs import token_logprobs
from emolab.experiments.wordings import WORDINGS
from emolab.models.model import Model
from emolab.models.prompts import render_prompts
from emolab.studies.analysis import HEADS, QUICK_HEADS
from emolab.studies.plan import Plan

T = TypeVar("T")

# Of a study, in their order; before them it loads the model and measures its pace.
STAGES = (
    "wording", "responses", "vectors", "selection", "sweep", "scores", "evoking", "claims", "baselines", "analysis",
    "figures",
)  # fmt: skip
SITES = ("attn", "resid")  # that are searched
_ROWS, _TOKENS = 48, 24
_QUESTIONS = ("Tell me about the house.", "Tell me about the road.", "Tell me about the town.")


def measure_pace(model: Model) -> dict[str, float]:
    """Tokens a second, written and read, of a batch of short answers: {"write": ..., "read": ...}.

    The faster of two runs each: whatever disturbs a second of one would count a thousand times over in an hour.
    """
    asked = [_QUESTIONS[i % len(_QUESTIONS)] for i in range(_ROWS)]
    generate(model, asked[:4], max_new_tokens=2)  # the first call of all pays for what later ones find ready
    texts, writing = _fastest(lambda: generate(model, asked, max_new_tokens=_TOKENS))
    prompts = render_prompts(model, asked)
    read, reading = _fastest(lambda: token_logprobs(model, prompts, texts))
    n = max(sum(map(len, read)), 1)
    return {"write": n / writing, "read": n / reading}


def _fastest(run: Callable[[], T]) -> tuple[T, float]:
    """What a run gives, and its seconds, the less of two."""
    runs = [_timed(run) for _ in range(2)]
    return runs[0][0], min(seconds for _, seconds in runs)


def _timed(run: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def count_texts(model: Model, plan: Plan, sizes: Mapping[str, int], n_emotions: int) -> dict[str, int]:
    """Texts that each stage writes, in the order of the stages; claims and methods not among them.

    sizes: how many questions are there to extract, choose and report with, and how many evoke one of the emotions.
    """
    texts, n_doses = {}, len(set(plan.search.doses))
    if plan.wordings is True:
        plain = {"{query}" if pair is None else pair[0] for pair in WORDINGS.values()}
        texts["wording"] = sizes["choose"] * (len(plain) + n_emotions * len(WORDINGS))
    texts["responses"] = (sizes["extract"] + sizes["choose"] + sizes["report"]) * (n_emotions + 1)
    texts["selection"] = plan.search.n_texts(model.n_layers, SITES, n_emotions, sizes["choose"])
    texts["sweep"] = sizes["report"] * (3 * n_emotions * n_doses + 1)  # two controls; unsteered ones once
    if sizes["evoking"]:
        texts["evoking"] = sizes["evoking"] * (2 * (n_emotions - 1) + 1)  # none towards its own emotion
    return texts


def expect(
    model: Model, plan: Plan, sizes: Mapping[str, int], n_emotions: int, pace: Mapping[str, float]
) -> dict[str, float]:
    """Seconds by stage, in the order of the stages: what is counted, over the pace measured."""
    texts, tokens = count_texts(model, plan, sizes, n_emotions), plan.max_new_tokens
    write, read = pace["write"], pace["read"]
    seconds = {name: n * tokens / write for name, n in texts.items()}
    n_settings = len(plan.search.settings(model.n_layers, SITES, n_emotions))
    # Nine passes over four texts until the breaking alpha of a setting is found.
    breaking = 9 * n_settings * n_emotions * 4 * tokens / read
    seconds["selection"] = texts["selection"] * plan.search.max_new_tokens / write + breaking
    seconds["vectors"] = 1.6 * sizes["extract"] * (n_emotions + 1) * tokens / read
    # Twice for perplexity, once for what judges take.
    seconds["scores"] = (texts["sweep"] + sizes["report"] * (n_emotions + 1)) * tokens * 3 / read
    if plan.n_claims:
        rows = plan.n_claims * n_emotions
        seconds["claims"] = rows * 4 * (4 * tokens / write + 16 * tokens / read) + 36 * rows * tokens / write
    if plan.methods:
        n = len(plan.methods) * n_emotions * (6 * 4 + 3 * sizes["choose"] + 2 * sizes["report"])
        seconds["baselines"] = n * tokens * (1 / write + 4 / read)
    heads = QUICK_HEADS if plan.quick else HEADS
    seconds["analysis"] = 6 * heads["screen"] * heads["patched"] * n_emotions * tokens / read + 20
    seconds["figures"] = 25.0
    return {name: round(seconds[name], 1) for name in STAGES if name in seconds}


def overview(
    model: Model, out: Path, plan: Plan, sizes: Mapping[str, int], n_emotions: int, expected: Mapping[str, float]
) -> str:
    """What lies ahead, how long it takes, and where it will lie."""
    texts: dict[str, Any] = count_texts(model, plan, sizes, n_emotions)
    size = f"{n_parameters(model) / 1e6:,.1f} million parameters, {str(model.dtype)[6:]} on {model.device}"
    return (
        f"study of {model.name} ({size}): results in {out}\n"
        f"{sum(texts.values()):,} texts: {', '.join(f'{n:,} {name}' for name, n in texts.items() if n)}"
        f"{'; claims and methods beside' if plan.n_claims or plan.methods else ''}.\n"
        f"Expected on this machine: {sum(expected.values()) / 60:.0f} minutes, at the pace just measured, if nothing "
        "else runs. A study that was stopped goes on where it was."
    )


def n_parameters(model: Model) -> int:
    return sum(p.numel() for p in model.hf.parameters())
