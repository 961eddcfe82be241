"""Ways of giving a model's answers an emotion, behind one interface: instructions, examples, directions, fine-tuning.

>>> method = vector_method(model, vectors)
>>> settings = [{"joy": 1.5}, {"joy": 1.0, "fear": 1.0}]                               # a mixture, where can_mix
>>> method.texts(["Tell me about the park."], settings)                                # [setting][query]
>>> method.kls(["Tell me about the park."], ["It was quiet."], settings)               # nats at every token
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from emolab.answers.generation import generate
from emolab.answers.logprobs import next_token_kl
from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError
from emolab.base.labels import NEUTRAL
from emolab.comparisons.comparison import Comparison
from emolab.comparisons.lora import Adapter, Training, change_weights, fit_lora, merge_lora
from emolab.models.model import Model
from emolab.models.prompts import prompt_ids, render_conversation, render_prompts
from emolab.steering.settings import FIELDS, Setting
from emolab.steering.steering import Steering, at
from emolab.vectors.activations import response_means
from emolab.vectors.controls import drawn_like
from emolab.vectors.directions import pca_vectors, probe_vectors
from emolab.vectors.vectors import EmotionVectors, match_norm, vectors_from_means

UNSTEERED = "unsteered"
METHODS = ("instruction", "few_shot", "emotion vector", "pca", "probe", "lora", "random")
WORDINGS = {0.5: "a little", 1.0: None, 2.0: "great"}  # the "doses" that an instruction has
SHOTS = (1.0, 3.0)
DOSES = (0.25, 0.4, 0.65, 1.0, 1.6, 2.5)  # even on a logarithmic scale
SCALES = (0.25, 0.5, 0.75, 1.0, 1.5)
Doses = Mapping[str, float]
_DIRECTIONS = {"emotion vector": vectors_from_means, "pca": pca_vectors, "probe": probe_vectors}


class Run(NamedTuple):
    """What to run for some settings, each over all queries: rows are setting by setting."""

    model: Model
    prompts: list[str]
    steering: list[Steering | None] | None = None


@dataclass(frozen=True, eq=False)
class Method:
    """One way of giving answers an emotion.

    name      of the method.
    plain     the model itself, without it.
    runs      (queries, [{emotion: dose}, ...]) -> the runs that together cover these settings, in order.
    doses     those worth trying. Of a vector its multiple, of LoRA its scale, of examples their number, of an
              instruction a key of `WORDINGS`.
    can_dose  any number is a dose, and can_mix: several emotions can be given at once, in any proportion.
    seconds   of setting up for all emotions, beyond the `answers` of the model that it learns from.
    setting   of a direction: where it is added.
    """

    name: str
    plain: Model
    runs: Callable[[list[str], list[Doses]], Iterator[Run]]
    doses: tuple[float, ...]
    can_dose: bool = False
    can_mix: bool = False
    seconds: float = 0.0
    answers: int = 0
    setting: str = ""

    def texts(
        self,
        queries: Sequence[str],
        settings: Sequence[Doses],
        *,
        max_new_tokens: int = 80,
        writing: Writing = Writing(),
    ) -> list[list[str]]:
        """Answers under every setting [setting][query], as few batches as the method allows."""
        texts: list[str] = []
        for run in self.runs(list(queries), list(settings)):
            texts += generate(
                run.model, run.prompts, steering=run.steering, max_new_tokens=max_new_tokens, writing=writing, raw=True
            )
        return _cut(texts, len(queries))

    def kls(
        self, queries: Sequence[str], texts: Sequence[str], settings: Sequence[Doses]
    ) -> list[list[Float[np.ndarray, " token"]]]:
        """`next_token_kl` of the plain model's answers, nats at every token, under every setting [setting][query]."""
        plain = render_prompts(self.plain, list(queries))
        kls = []
        for run in self.runs(list(queries), list(settings)):
            k = len(run.prompts) // len(plain)
            kls += next_token_kl(
                self.plain,
                plain * k,
                list(texts) * k,
                steering=run.steering,
                other=run.model,
                other_prompts=run.prompts,
            )
        return _cut(kls, len(queries))


def plain_method(model: Model) -> Method:
    """The model left alone."""
    return Method(UNSTEERED, model, lambda queries, _: iter([Run(model, render_prompts(model, queries))]), (0.0,))


def instruction_method(model: Model) -> Method:
    """The instruction in the prompt, in three wordings: dose 0.5 "a little", 1 plain, 2 "great"."""

    def runs(queries, settings):
        prompts = []
        for doses in settings:
            for emotion, dose in doses.items():
                prompts += render_prompts(model, queries, emotion, intensity=WORDINGS[dose])
        yield Run(model, prompts)

    return Method("instruction", model, runs, tuple(WORDINGS))


def few_shot_method(model: Model, responses: pd.DataFrame, *, max_new_tokens: int = 80, seed: int = 0) -> Method:
    """Earlier turns in which the model answered other queries with the emotion; no instruction. Dose: their number.

    The examples are the model's own instructed answers, drawn once for each emotion. They are turns of the chat
    template; without one, query and answer stand in lines of their own, an empty line between examples. Numbers of
    examples that leave no room for the answer are left out. Raises EmolabError where none is left, or an emotion has no
    answers with queries.
    """
    rng = np.random.default_rng(seed)
    instructed = responses[(responses["condition"] != NEUTRAL) & (responses["query"] != "")]
    most = int(max(SHOTS))
    examples = {
        emotion: rows.iloc[rng.permutation(len(rows))[:most]][["query", "text"]].to_numpy().tolist()
        for emotion, rows in instructed.groupby("condition")
    }

    def runs(queries, settings):
        prompts = []
        for doses in settings:
            for emotion, k in doses.items():
                if emotion not in examples:
                    raise EmolabError(f"no answers to queries under {emotion!r} to take examples from")
                prompts += [render_conversation(model, examples[emotion][: int(k)], query) for query in queries]
        yield Run(model, prompts)

    def fits(k: float) -> bool:
        longest = max(responses["query"], key=len)
        prompts = [render_conversation(model, shown[: int(k)], longest) for shown in examples.values()]
        size = max(map(len, prompt_ids(model, prompts)))
        enough = all(len(shown) >= k for shown in examples.values())
        # Twice, since other queries may be longer.
        return enough and (model.n_ctx is None or size + 2 * max_new_tokens <= model.n_ctx)

    shots = tuple(k for k in SHOTS if fits(k)) if examples else ()
    if not shots:
        raise EmolabError(f"no example fits the context of {model.name!r} ({model.n_ctx}); leave few_shot out")
    return Method("few_shot", model, runs, shots, answers=most * len(examples))


def vector_method(
    model: Model,
    vectors: EmotionVectors | Sequence[EmotionVectors],
    *,
    name: str = "emotion vector",
    setting: Setting = Setting(),
    like: EmotionVectors | None = None,
    seconds: float = 0.0,
    answers: int = 0,
) -> Method:
    """Steering with vectors; of several, queries take one each in turn.

    like: vectors to whose norms these are brought; with part "specific", that part of these has the norm of that part
    of `like`.
    """
    if setting.part == "shared" or setting.site == "head":
        reason = 'part "shared" is the same for every emotion' if setting.part == "shared" else 'heads sum to "attn"'
        raise EmolabError(f'{reason}; compare methods at resid, attn or mlp, with "whole" or "specific" vectors')
    used = [v.part(setting.part) for v in ([vectors] if isinstance(vectors, EmotionVectors) else vectors)]
    if like is not None:
        lengths = like.part(setting.part).get(setting.site)
        used = [replace(v, data={setting.site: match_norm(v.get(setting.site), like=lengths)}) for v in used]

    def runs(queries, settings):
        rows = []
        for doses in settings:
            variants = [at(v, replace(setting, part="whole"), [doses])[0] for v in used]
            rows += [variants[i % len(variants)] for i in range(len(queries))]
        yield Run(model, render_prompts(model, queries) * len(settings), rows)

    fields = {field: getattr(setting, field) for field in FIELDS}
    shown = [f"{k} {v}" for k, v in fields.items() if k in ("site", "part") or v != FIELDS[k]]
    return Method(name, model, runs, DOSES, True, True, seconds, answers, ", ".join(shown))


def lora_method(model: Model, adapters: Mapping[str, Adapter], *, answers: int = 0) -> Method:
    """Fine-tuning, {emotion: its adapter} (`fit_lora`). Dose: the scale of the change of the weights."""

    same = {name for adapter in adapters.values() for name in adapter.factors}
    if any(set(adapter.factors) != same for adapter in adapters.values()):
        raise EmolabError("these adapters change different weights; train all of them on this model")
    copies: list[Model] = []

    def runs(queries, settings):
        # One copy for all doses: each run must be over before the next is taken. Its bridge is never run.
        copies[:] = copies or [merge_lora(model, {})]
        for doses in settings:
            change_weights(copies[0].hf, model, {adapters[emotion]: dose for emotion, dose in doses.items()})
            yield Run(copies[0], render_prompts(model, queries))

    seconds = sum(adapter.meta["seconds"] for adapter in adapters.values())
    return Method("lora", model, runs, SCALES, True, True, seconds, answers)


def need_methods(names: Sequence[str]) -> None:
    """Raise EmolabError where a method is unknown, and where there is none."""
    unknown = [name for name in names if name not in METHODS]
    if unknown or not len(names):
        raise EmolabError(f"unknown method {unknown[:1]}; expected some of {', '.join(METHODS)}")


def build_methods(
    comparison: Comparison, responses: pd.DataFrame, names: Sequence[str] = METHODS, *, max_new_tokens: int = 80
) -> list[Method]:
    """Methods by name, directions once per setting; what each needs is made and timed.

    >>> comparison = Comparison(model, vectors, emolab.Setting(site="attn"))
    >>> methods = build_methods(comparison, responses, ("instruction", "pca"))

    Arguments and errors as in `emolab.comparisons.compare_methods`; adapters are kept in `baselines/` of `out`.
    """
    model, vectors, seed = comparison.model, comparison.vectors, comparison.seed
    sites = list(dict.fromkeys(setting.site for setting in comparison.settings))
    methods: list[Method] = []
    start = time.perf_counter()
    means = response_means(model, responses, sites=sites) if set(_DIRECTIONS) & set(names) else None
    reading = time.perf_counter() - start
    for name in dict.fromkeys(names):
        if name == "instruction":
            methods.append(instruction_method(model))
        elif name == "few_shot":
            try:
                methods.append(few_shot_method(model, responses, max_new_tokens=max_new_tokens, seed=seed))
            except EmolabError as error:  # a small context: no reason to lose the others
                if len(set(names)) == 1:
                    raise
                warnings.warn(f"few_shot is left out: {error}", stacklevel=2)
        elif name == "lora":
            folder = None if comparison.folder is None else comparison.folder / "baselines"
            training = Training(seed=seed)
            adapters = {e: fit_lora(model, responses, e, training=training, out=folder) for e in vectors.emotions}
            methods.append(lora_method(model, adapters, answers=int(responses["condition"].isin(adapters).sum())))
        else:
            if name == "random":
                source = list(drawn_like(vectors, name, seed=seed).values())
                seconds = np.nan
                answers = 0
            else:
                start = time.perf_counter()
                made = _DIRECTIONS[name](means, sites=sites)
                seconds = reading + time.perf_counter() - start
                answers = len(responses)
                source = vectors if name == "emotion vector" else made  # made only to be timed
            methods += [
                vector_method(model, source, name=name, setting=one, like=vectors, seconds=seconds, answers=answers)
                for one in comparison.settings
            ]
    return methods


def _cut(rows: list, n: int) -> list[list]:
    return [rows[i : i + n] for i in range(0, len(rows), n)]
