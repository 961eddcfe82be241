"""Writing beside Hugging Face's `generate`, and beside the processor's own matrix products.

`python benchmarks/writing.py`. Every case writes tokens of the same number behind the same questions, greedy with the
same repetition penalty, and no answer ends early. emolab's cases are whole calls of `generate`, with prompts rendered,
tokenized and answers decoded; Hugging Face's get ready token tensors and the model as `from_pretrained(...).eval()`
gives it. The matrix products are those of all linear layers for as many steps, on the model's own weights, and nothing
else: no attention, no norms.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from unittest import mock

import torch
from _harness import arguments, directions, loaded, measure, plain_row, questions, ratios, record
from transformers import AutoModelForCausalLM

import emolab
from emolab import Steering, Writing
from emolab.answers.generation import stream
from emolab.models.fetch import MODELS, find
from emolab.models.model import Model
from emolab.models.prompts import encode, render_prompts

BATCH, NEW = 64, 40
HF, PRODUCTS = "Hugging Face generate", "matrix products alone"


def plain(model: Model) -> torch.nn.Module:
    """The same checkpoint as anybody would load it."""
    source = find(model.source) if model.source in MODELS else model.source
    return AutoModelForCausalLM.from_pretrained(source, dtype=model.dtype).eval()


def hugging_face(model: Model, hf, n: int, new: int) -> Callable[[], object]:
    ready = encode(model, render_prompts(model, asked(model, n)))
    options = {"max_new_tokens": new, "do_sample": False, "repetition_penalty": 1.1, "eos_token_id": None}

    def write():
        hf.generation_config.eos_token_id = None
        ids = hf.generate(ready.input_ids, attention_mask=ready.attention_mask, pad_token_id=0, **options)
        assert ids.shape[1] == ready.input_ids.shape[1] + new

    return write


def asked(model: Model, n: int) -> list[str]:
    return list(questions(n, quick=model.name != "smollm2")["query"])


def ours(model: Model, n: int, new: int, *, steered: bool = False) -> Callable[[], object]:
    vectors = directions(model)
    steering = Steering(vectors, {"joy": 1.0}, site="attn", layers="late") if steered else None

    def write():
        with endless(model):
            options = {"max_new_tokens": new, "writing": Writing(batch_size=n), "steering": steering}
            emolab.generate(model, asked(model, n), **options)

    return write


def streaming(model: Model, new: int) -> Callable[[], object]:
    def write():
        steps: list[int] = []
        with endless(model):
            prompts = render_prompts(model, asked(model, 1))
            stream(model, prompts, each=lambda ids, scores: steps.append(ids.shape[1]), max_new_tokens=new)
        assert steps == list(range(new))

    return write


def endless(model: Model):
    """Inside, no token ends an answer: every case does the same work."""
    return mock.patch.object(type(model), "eos_ids", [])


def products(model: Model, n: int, new: int) -> Callable[[], object]:
    layers = [m for m in model.hf.modules() if isinstance(m, torch.nn.Linear)]
    given = {m: torch.randn(n, m.in_features).to(model.dtype) for m in layers}

    @torch.inference_mode()
    def multiply():
        for _ in range(new):
            for m in layers:
                torch.nn.functional.linear(given[m], m.weight)

    return multiply


def main() -> None:
    a = arguments()
    n, new = (4, 8) if a.quick else (BATCH, NEW)
    cases: dict[str, Callable[[], object]] = {}
    single: dict[str, Callable[[], object]] = {}
    for dtype in ("float32", "bfloat16"):
        model = loaded(dtype, a.quick)
        hf = plain(model)
        cases[f"{HF}, {dtype}"] = hugging_face(model, hf, n, new)
        cases[f"emolab, {dtype}"] = ours(model, n, new)
        cases[f"emolab, steered, {dtype}"] = ours(model, n, new, steered=True)
        cases[f"{PRODUCTS}, {dtype}"] = products(model, n, new)
        single[f"{HF}, {dtype}"] = hugging_face(model, hf, 1, new)
        single[f"emolab, streaming, {dtype}"] = streaming(model, new)
    seconds = measure(cases, repeats=a.repeats)
    setting = f"batch {n}, {new} tokens"

    def compared(
        name: str, kinds: tuple[str, str], dtypes: tuple[str, str], goal: tuple[str, float] | None
    ) -> list[dict]:
        reference, case = (f"{kind}, {dtype}" for kind, dtype in zip(kinds, dtypes, strict=True))
        kept = {reference: seconds[reference], case: seconds[case]}
        rows = ratios(kept, against=reference, goals={case: goal} if goal else {}, speed=True)
        rows += [plain_row(f"{k}: tokens a second", round(n * new / statistics.median(v)), "") for k, v in kept.items()]
        record(name, rows, setting=setting)
        return rows

    f, b = "float32", "bfloat16"
    compared("writing beside Hugging Face in float32", (HF, "emolab"), (f, b), (">=", 2.8))
    compared("writing beside Hugging Face, both in float32", (HF, "emolab"), (f, f), None)
    compared("writing beside Hugging Face in bfloat16", (HF, "emolab"), (b, b), (">=", 1.1))
    for dtype in (f, b):
        compared(
            f"steered writing beside unsteered, {dtype}", ("emolab", "emolab, steered"), (dtype,) * 2, (">=", 0.97)
        )
        goal = (">=", 0.6) if dtype == b else None
        compared(f"share of the processor's own matrix speed, {dtype}", (PRODUCTS, "emolab"), (dtype,) * 2, goal)
    seconds = measure(single, repeats=a.repeats)
    for dtype in (f, b):
        kept = {k: v for k, v in seconds.items() if k.endswith(dtype)}
        goals = {f"emolab, streaming, {dtype}": (">=", 0.95)}
        rows = ratios(kept, against=f"{HF}, {dtype}", goals=goals, speed=True)
        record(f"one answer, token by token, {dtype}", rows, setting=f"{new} tokens")


if __name__ == "__main__":
    main()
