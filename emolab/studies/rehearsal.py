"""A study in small before it begins: what a model lacks, and what would fail, shows in seconds and not after hours.

>>> rehearse(model, ("joy", "fear"), questions, judges, FULL)                     # doctest: +SKIP
['resid', 'attn', 'mlp', 'head']
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pandas as pd

from emolab.answers.generation import generate
from emolab.answers.responses import responses_from_texts
from emolab.base.errors import EmolabError
from emolab.base.labels import NEUTRAL
from emolab.geometry.projections import umap_class
from emolab.heads.attribution import word_tokens
from emolab.heads.effects import head_effects
from emolab.heads.patching import HeadTest
from emolab.judges.judges import ask
from emolab.models.model import Model
from emolab.models.prompts import check_context, prompt_ids, render_prompts
from emolab.models.sites import SITES, head_weights, site_layers
from emolab.steering.steering import Steering
from emolab.studies.plan import Plan
from emolab.vectors.vectors import EmotionVectors, extract_vectors

_TEXT = "It was a day like any other, and this is what it was like: {}."


def rehearse(
    model: Model, emotions: Sequence[str], queries: Sequence[pd.DataFrame], judges: Sequence[Any], plan: Plan
) -> list[str]:
    """Every step of a study once, on a few words; the sites at which this model can be measured.

    A site that no layer has is left out, and said, as are heads that cannot be tested. Raises EmolabError for whatever
    else would end the study later: prompts that do not fit the context, activations that are not finite, steering that
    does not reach its site, a judge that cannot be asked, a package that a figure needs.
    """
    asked = [query for part in queries for query in part["query"]]
    prompts = {c: render_prompts(model, asked, c) for c in (NEUTRAL, *emotions)}
    check_context(model, max(max(map(len, prompt_ids(model, some))) for some in prompts.values()) + plan.max_new_tokens)
    sites = [site for site in SITES if _has(model, site)]
    responses = _responses(prompts, asked)
    vectors = extract_vectors(model, responses, sites=sites)
    settings = plan.search.settings(model.n_layers, sites, len(emotions))
    for setting in {(setting.site, setting.part): setting for setting in settings}.values():
        steering = Steering(vectors, {emotions[0]: 0.1}, site=setting.site, part=setting.part)
        generate(model, asked[:1], steering=steering, max_new_tokens=2)
    for judge in judges:
        ask(judge, list(responses["text"][:2]), list(responses["query"][:2]))
    if "head" in sites:
        _test_heads(model, vectors, responses)
    with warnings.catch_warnings(action="ignore"):  # it says that TensorFlow is not installed
        umap_class()
    return sites


def _has(model: Model, site: str) -> bool:
    try:
        layers = site_layers(model, site)
        if site == "head":
            head_weights(model, layers[0])
    except EmolabError as error:
        warnings.warn(f"site {site} is not measured: {error}", stacklevel=5)
        return False
    return True


def _responses(prompts: dict[str, list[str]], queries: list[str]) -> pd.DataFrame:
    """Two questions under each condition, answered with the name of the condition."""
    texts = responses_from_texts({condition: [_TEXT.format(condition)] * 2 for condition in prompts})
    asked = [i for _ in prompts for i in range(2)]
    return texts.assign(
        query_id=[f"q{i}" for i in asked], query=[queries[i] for i in asked],
        prompt=[prompts[condition][i] for condition, i in zip(texts["condition"], asked, strict=True)],
    )  # fmt: skip


def _test_heads(model: Model, vectors: EmotionVectors, responses: pd.DataFrame) -> None:
    head = (site_layers(model, "head")[-1], 0)
    few = vectors.select(list(vectors.emotions[:2]))
    words = {emotion: [word] for emotion, word in zip(few.emotions, ("sun", "rain"), strict=False)}
    try:
        word_tokens(model, words)
    except EmolabError:  # every word begins alike, letter by letter: a study finds its words in the answers
        return
    try:
        head_effects(model, few, responses, test=HeadTest("patch", words=words, n_queries=1), heads=[head])
    except EmolabError as error:
        warnings.warn(f"heads may not be put to causal tests: {error}", stacklevel=4)
