"""Does a model do here what emolab relies on? `emolab info --check MODEL`, and one line for a new architecture.

>>> from emolab.studies.selfcheck import check_model
>>> for check in check_model(model)[:3]: print(check)
ok      model: smollm2, LlamaForCausalLM (tested), 30 layers, d_model 576, context 8192, float32 on cpu, ...
ok      bridge and model agree: logits differ by ... of their spread, allowed are 0.01
ok      batches: answers do not depend on the batch (3 of 3 equal)

A forward pass or a few short answers a check: seconds on a small model. docs/families.md lists the architectures on
which the same promises, and more, are tested with every release.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from emolab.answers.decoding import write
from emolab.answers.generation import decoded, generate, generation_config
from emolab.answers.logprobs import token_logprobs
from emolab.answers.responses import responses_from_texts
from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError
from emolab.models.hooks import at_sites, forward
from emolab.models.model import Model
from emolab.models.prompts import Batch, encode, render_prompts, text_ids
from emolab.models.sites import bridge_gap, head_weights, hf_modules, is_checked, site_layers
from emolab.steering.edits import hooked
from emolab.steering.steering import Steering, build_edits
from emolab.vectors.vectors import EmotionVectors, extract_vectors

QUERIES = ["Tell me about the park.", "How?", "Was the dog sad when it rained all day? Tell me what they did then."]
TEXTS = {
    "neutral": ["There was a park.", "They walked down the road.", "It was cold."],
    "joy": ["Happy! So happy!", "What a joy.", "He laughed, and the sun came."],
}
NEW = 12  # tokens of an answer
_TIE = {torch.float32: 1e-3, torch.float64: 1e-6}  # nats between two tokens that rounding may swap; in half precision:
_HALF_TIE = 0.25


@dataclass(frozen=True)
class Check:
    """One line of the report. state: "ok", "FAILED", or "note" for what is no fault but good to know."""

    name: str
    state: str
    told: str

    def __str__(self) -> str:
        return f"{self.state:<7} {self.name}: {self.told}"


def check_model(model: Model) -> list[Check]:
    """Every check on this model, in order; nothing is left on it. A check that cannot run is a failed one.

    >>> [check.name for check in check_model(model) if check.state == "FAILED"]
    []
    """
    checks = [Check("model", "ok", _facts(model))]
    for name, check in CHECKS.items():
        try:
            state, told = check(model)
        except EmolabError as error:
            state, told = False, str(error)
        checks.append(Check(name, {True: "ok", False: "FAILED", None: "note"}[state], told))
    return checks


def _facts(model: Model) -> str:
    architecture = type(model.hf).__name__
    known = "tested" if is_checked(model.hf) else "not among the tested ones"
    return (
        f"{model.name}, {architecture} ({known}), {model.n_layers} layers, d_model {model.d_model}, context "
        f"{model.n_ctx or 'of unknown length'}, {str(model.dtype).removeprefix('torch.')} on {model.device}, "
        f"chat template: {'yes' if model.tokenizer.chat_template else 'no'}"
    )


def _bridge(model: Model) -> tuple[bool | None, str]:
    if model.hf is model.bridge.original_model:
        return True, "the bridge is your own, and runs everything"
    off, allowed = bridge_gap(model)
    return off < allowed, f"logits differ by {off:.1e} of their spread, allowed are {allowed:g}"


def _batches(model: Model) -> tuple[bool | None, str]:
    """Alone, all together and in pairs: three neighbourhoods and three widths of padding for each query."""
    prompts = render_prompts(model, QUERIES)
    in_threes, in_twos = Writing(batch_size=3), Writing(batch_size=2)
    alone = [generate(model, prompt, max_new_tokens=NEW, raw=True)[0] for prompt in prompts]
    together = generate(model, prompts, max_new_tokens=NEW, writing=in_threes, raw=True)
    pairs = [
        generate(model, [prompt, prompts[i - 1]], max_new_tokens=NEW, writing=in_twos, raw=True)[0]
        for i, prompt in enumerate(prompts)
    ]
    return _same(model, prompts, (alone, together, pairs), "answers do not depend on the batch")


def _cache(model: Model) -> tuple[bool | None, str]:
    prompts = render_prompts(model, QUERIES)
    cached = generate(model, prompts, max_new_tokens=NEW, raw=True)
    config = generation_config(model, NEW, Writing())
    config.use_cache = False
    with torch.inference_mode():
        ids = write(model.hf, encode(model, prompts), config, Writing().repetition_penalty, None, {})
    plain = [""] * len(prompts) if ids is None else decoded(model, ids)
    return _same(model, prompts, (cached, plain), "answers do not depend on the cache")


def _same(model: Model, prompts: list[str], ways: Sequence[list[str]], text: str) -> tuple[bool, str]:
    """Whether texts agree between the ways to make them, but for ties that rounding decides."""
    rows = list(zip(prompts, *ways, strict=True))
    gaps = [max(_gap(model, p, first, other) for other in others) for p, first, *others in rows]
    equal, worst = sum(gap == 0 for gap in gaps), max(gaps)
    same = worst <= _TIE.get(model.dtype, _HALF_TIE)
    ties = "" if equal == len(gaps) else f", the others part where two tokens are {worst:.2g} nats apart"
    return same, f"{text if same else text.replace('do not ', '')} ({equal} of {len(gaps)} equal{ties})"


def _gap(model: Model, prompt: str, a: str, b: str) -> float:
    """How far apart, in nats, the model finds the two tokens at which two answers part; 0 for the same text."""
    if a == b:
        return 0.0
    first, second = text_ids(model, [a, b])
    at = next((i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), None)
    if at is None:  # one ended where the other went on
        return float("inf")
    ours, theirs = token_logprobs(model, [prompt] * 2, [a, b], batch_size=1)
    return abs(float(ours[at] - theirs[at]))


def _batch(model: Model) -> tuple[Batch, list[tuple[int, int]]]:
    batch = encode(model, render_prompts(model, QUERIES))
    own = batch.attention_mask.sum(1).tolist()
    return batch, [(batch.prompt_len - n, n) for n in own]


def _states(model: Model, steering: Steering | None, plain: bool) -> list[torch.Tensor]:
    """The residual stream after every block, on the plain model or on the bridge: [row, token, d_model] a layer."""
    batch, spans = _batch(model)
    kept: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> None:
        kept.append(x.clone())

    reads = [(("resid", layer), keep) for layer in range(model.n_layers)]
    with torch.inference_mode(), hooked(model, build_edits(model, [steering], spans), plain=plain):
        with at_sites(model, reads, plain=plain) as runner:
            forward(model, runner, batch, 1)
    return kept


def _random_vectors(model: Model) -> EmotionVectors:
    draw = torch.Generator().manual_seed(0)
    norms = torch.stack([x.float().norm(dim=-1).median().cpu() for x in _states(model, None, plain=False)])
    drawn = torch.randn(1, model.n_layers, model.d_model, generator=draw, dtype=torch.float32, device="cpu")
    unit = torch.nn.functional.normalize(drawn, dim=-1)
    return EmotionVectors({"resid": unit * norms[:, None]}, ("random",), norms, {"fingerprint": model.fingerprint})


def _local(model: Model) -> tuple[bool | None, str]:
    vectors, layer = _random_vectors(model), model.n_layers // 2
    steering = Steering(vectors, {"random": 0.5}, layers=[layer], positions="all")
    both = [True, False] if hf_modules(model, "resid") else [False]
    before, at = [0.0], []
    real = _batch(model)[0].attention_mask.bool()
    for plain in both:
        unsteered, moved = (_states(model, s, plain) for s in (None, steering))
        expected = unsteered[layer] + steering.table()[layer].to(model.dtype).to(unsteered[layer])
        before += [_off(a, b, real) for a, b in zip(moved[:layer], unsteered[:layer], strict=True)]
        at.append(_off(moved[layer], expected, real))
    worst, exact = np.max(before), np.max(at)  # of NaN, NaN
    told = f"layer {layer} is off by {exact:.1e} of its activations, the {layer} before it moved by {worst:.1e}"
    return bool(np.maximum(worst, exact) <= torch.finfo(model.dtype).eps), told


def _off(a: torch.Tensor, b: torch.Tensor, real: torch.Tensor) -> float:
    a, b = a[real.to(a.device)].float(), b[real.to(b.device)].float()
    return float((a - b).abs().max() / b.abs().max())


def _heads(model: Model) -> tuple[bool | None, str]:
    try:
        site_layers(model, "attn")
        layers = site_layers(model, "head")
        head_weights(model, layers[0])
    except EmolabError as error:
        return None, f'no site "head" for this model ({error})'
    vectors = extract_vectors(model, responses_from_texts(TEXTS), sites=("attn", "head"))
    heads, attention = vectors.get("head")[:, layers].double().sum(2), vectors.get("attn")[:, layers].double()
    off, allowed = float((heads - attention).norm() / attention.norm()), 1e-3 if model.dtype.itemsize >= 4 else 5e-2
    return off < allowed, f"their sum is off by {off:.1e}, allowed are {allowed:g}"


def _prompts(model: Model) -> tuple[bool | None, str]:
    bos = model.tokenizer.bos_token_id
    starts = [ids[:2] for ids in (encode(model, [p]).input_ids[0].tolist() for p in render_prompts(model, QUERIES))]
    count = 0 if bos is None else max(next((i for i, t in enumerate(s) if t != bos), len(s)) for s in starts)
    own = bos in model.tokenizer.convert_ids_to_tokens(list(model.start_ids))
    once = count == 1 if own else count <= 1
    return once, f"a prompt starts with {count} BOS; the tokenizer adds {'one' if own else 'none'} by itself"


def _joint(model: Model) -> tuple[bool | None, str]:
    pairs = [(p, t) for p in render_prompts(model, QUERIES) for texts in TEXTS.values() for t in texts]

    def ids(text: str) -> list[int]:
        return list(model.tokenizer(text, add_special_tokens=False).input_ids)

    equal = sum(ids(p + t) == ids(p) + ids(t) for p, t in pairs)
    told = f"{equal} of {len(pairs)} prompts with an answer have the same tokens joined as apart"
    return (True, told) if equal == len(pairs) else (None, told + "; emolab tokenises prompt and answer apart")


def _finite(model: Model) -> tuple[bool | None, str]:
    peak = float(np.max([x.abs().max().item() for x in _states(model, None, plain=False)]))
    share = peak / torch.finfo(model.dtype).max
    room = f", {share:.1%} of what {str(model.dtype).removeprefix('torch.')} holds" if share > 1e-3 else ""
    return bool(np.isfinite(peak)), f"the largest activation is {peak:.3g}{room}"


CHECKS: dict[str, Callable[[Model], tuple[bool | None, str]]] = {
    "bridge and model agree": _bridge,
    "batches": _batches,
    "cache": _cache,
    "steering is exact and local": _local,
    "heads add up to attention": _heads,
    "BOS": _prompts,
    "prompt and answer": _joint,
    "finite": _finite,
}
