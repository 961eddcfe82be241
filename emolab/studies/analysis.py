"""The part of a study that asks where emotion lives: geometry by layer, and heads put to causal tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from emolab.base.errors import EmolabError
from emolab.base.stats import clusters_of
from emolab.base.storage import digest, for_json, kept, stable
from emolab.experiments.sweeps import vectors_identity
from emolab.experiments.wordings import ADJECTIVES
from emolab.geometry.confounding import confounds
from emolab.geometry.projections import embed, embed_scores
from emolab.geometry.reliability import probe_accuracy, split_half, word_accuracy
from emolab.geometry.similarity import shared_energy
from emolab.heads.attribution import emotion_tokens
from emolab.heads.curves import ablation_curve
from emolab.heads.effects import head_effects
from emolab.heads.head_vectors import head_summary
from emolab.heads.patching import HeadTest
from emolab.models.model import Model
from emolab.models.sites import site_layers
from emolab.say.heads import head_forest
from emolab.studies.stages import attempt
from emolab.vectors.activations import response_means
from emolab.vectors.controls import means_of
from emolab.vectors.corpus import corpus_hash
from emolab.vectors.vectors import EmotionVectors

# How many heads to patch, and questions to patch and to ablate on: for five emotions on a model of 135M parameters and
# two cores, four minutes, or one.
HEADS = {"screen": 20, "patched": 10, "ablated": 4, "n_random": 2, "max_new_tokens": 40}
QUICK_HEADS = {"screen": 8, "patched": 4, "ablated": 4, "n_random": 1, "max_new_tokens": 24}


def geometry_tables(
    model: Model,
    vectors: EmotionVectors,
    responses: pd.DataFrame,
    tested: pd.DataFrame,
    *,
    folder: Path,
    made_of: Mapping[str, str],
) -> dict[str, pd.DataFrame]:
    """Shared energy, split halves, probes on held-out queries (beside the words alone), maps, confounds.

    >>> given = {"folder": Path("runs/x/geometry"), "made_of": {"fingerprint": model.fingerprint}}
    >>> tables = geometry_tables(model, vectors, responses, heldout_responses, **given)
    >>> tables["probe"].query("emotion == 'all' and probe == 'logistic'")[["layer", "accuracy", "chance", "p"]]

    Each is kept in `folder` and made again where it was made of something else.
    """
    groups = clusters_of(pd.concat([responses, tested]))
    settings = {**made_of, "groups": digest([*groups.index, *groups.astype(str)])}
    means = means_of(vectors)

    def table(name: str, measure: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        return kept(folder / f"{name}.parquet", settings, measure)

    def probe() -> pd.DataFrame:
        return probe_accuracy(means, test=response_means(model, tested, sites=("resid",)), groups=groups)

    def silhouette() -> pd.DataFrame:
        return embed_scores(means, embed(means, methods=("pca",), layers=range(means.means["resid"].shape[1])))

    points = table("points", lambda: embed(means))  # PCA beside UMAP at four layers
    return {
        "maps": table("maps", lambda: embed_scores(means, points)),
        "shared": table("shared", lambda: shared_energy(means, groups=groups)),
        "split_half": table("split_half", lambda: split_half(means, groups=groups)),
        "split_half_specific": table("split_half_specific", lambda: split_half(means, part="specific", groups=groups)),
        "probe": table("probe", probe),
        "words": table("words", lambda: word_accuracy(responses, test=tested, groups=groups)),
        "silhouette": table("silhouette", silhouette),
        "confounds": table("confounds", lambda: confounds(means, responses)),
    }


def geometry_summary(tables: dict[str, pd.DataFrame]) -> dict:
    """What `summary.json` holds of them: one number a layer."""
    probe = tables["probe"].query("emotion == 'all' and probe == 'logistic'").sort_values("layer")
    words = tables["words"].query("emotion == 'all'").iloc[0]
    full = tables["silhouette"].query("method == 'full'").sort_values("layer")
    half = {name: tables[name].groupby("layer")["cosine"].mean() for name in ("split_half", "split_half_specific")}
    return {
        "shared_energy_by_layer": tables["shared"].sort_values("layer")["share"],
        "shared_energy_null_by_layer": tables["shared"].sort_values("layer")["null_mean"],
        "split_half_by_layer": half["split_half"],
        "split_half_specific_by_layer": half["split_half_specific"],
        "probe_accuracy_by_layer": probe["accuracy"],
        "probe_chance": probe["chance"].mean(),
        "probe_p_by_layer": probe["p"],
        "words_accuracy": words["accuracy"],
        "silhouette_by_layer": full["silhouette"],
        "silhouette_p_by_layer": full["p"],
    }


def analyse(
    model: Model,
    vectors: EmotionVectors,
    responses: pd.DataFrame,
    tested: pd.DataFrame,
    *,
    judge: Any,
    out: Path,
    seed: int = 0,
    quick: bool = False,
) -> dict:
    """Geometry and heads for `summary.json`; writes `geometry/*.parquet`, `heads.parquet`, `ablation.parquet`.

    responses: those that the vectors came from; heads are screened and ranked on them, by what patching each one into a
    neutral run brings. tested: held-out ones, on which probes are read and ranked heads are ablated, against random
    heads. quick: fewer heads and questions.
    What cannot be measured is `{"not_measured": reason}`.
    """
    made_of = {"fingerprint": model.fingerprint, "vectors": vectors_identity(vectors)}
    made_of |= {"responses": corpus_hash(responses), "tested": corpus_hash(tested)}

    def geometry() -> dict:
        tables = geometry_tables(model, vectors, responses, tested, folder=out / "geometry", made_of=made_of)
        return for_json(geometry_summary(tables), decimals=4)

    def heads() -> dict:
        site_layers(model, "head")  # says at once where a model has no attention heads
        sizes = QUICK_HEADS if quick else HEADS
        words = _words(model, responses, vectors.emotions)
        patch = HeadTest("patch", words=words, n_queries=sizes["patched"])
        ablate = HeadTest(
            "ablate", words=words, judge=judge, n_queries=sizes["ablated"], max_new_tokens=sizes["max_new_tokens"]
        )
        settings = {**made_of, "seed": seed, "judge": stable(judge), "sizes": stable(sizes)}
        screen, n_random = sizes["screen"], sizes["n_random"]
        effects = head_effects(model, vectors, responses, test=patch, screen=screen, seed=seed, out=out)
        curve = kept(
            out / "ablation.parquet",
            settings,
            lambda: ablation_curve(model, vectors, tested, ranked=effects, test=ablate, n_random=n_random, seed=seed),
        )
        return for_json(head_summary(effects, curve) | {"sentence": str(head_forest(effects))}, decimals=4)

    return {
        "geometry": attempt(geometry, "geometry not measured", otherwise=_not_measured),
        "heads": attempt(heads, "heads not measured", otherwise=_not_measured),
    }


def _not_measured(reason: str) -> dict:
    return {"not_measured": reason}


def _words(model: Model, responses: pd.DataFrame, emotions: Sequence[str]) -> dict[str, list[str]] | None:
    """None: the words typical of each emotion. Where an emotion has none, plain names for all, so that they compare."""
    try:
        emotion_tokens(model, responses)
    except EmolabError:
        return {emotion: [emotion, ADJECTIVES.get(emotion, emotion)] for emotion in emotions}
    return None
