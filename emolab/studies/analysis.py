"""The part of a study that asks where emotion lives: geometry by layer, and heads put to causal tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from emolab.base.errors import EmolabError, FileError, MismatchError, ResourceError
from emolab.base.progress import say
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
from emolab.vectors.activations import ResponseMeans, response_means
from emolab.vectors.controls import means_of
from emolab.vectors.corpus import corpus_hash
from emolab.vectors.vectors import EmotionVectors

# How many heads to patch, and questions to patch and to ablate on: for five emotions on a model of 135M parameters and
# two cores, four minutes, or one.
HEADS = {"screen": 20, "patched": 10, "ablated": 4, "n_random": 2, "max_new_tokens": 40}
QUICK_HEADS = {"screen": 10, "patched": 4, "ablated": 2, "n_random": 1, "max_new_tokens": 24}
GEOMETRY = (
    "shared",
    "split_half",
    "split_half_specific",
    "probe",
    "words",
    "silhouette",
    "points",
    "maps",
    "confounds",
)


def geometry_tables(
    means: ResponseMeans, heldout: ResponseMeans, responses: pd.DataFrame, tested: pd.DataFrame, groups: pd.Series
) -> dict[str, pd.DataFrame]:
    """Shared energy, split halves, probes on held-out queries (beside the words alone), maps, confounds.

    >>> tables = geometry_tables(means, heldout_means, responses, heldout_responses, situations)
    >>> tables["probe"].query("emotion == 'all' and probe == 'logistic'")[["layer", "accuracy", "chance", "p"]]

    groups: Series query_id -> situation, for all queries.
    """
    everywhere = embed(means, methods=("pca",), layers=range(means.means["resid"].shape[1]))
    points = embed(means)  # PCA beside UMAP at four layers
    return {
        "points": points,
        "maps": embed_scores(means, points),
        "shared": shared_energy(means, groups=groups),
        "split_half": split_half(means, groups=groups),
        "split_half_specific": split_half(means, part="specific", groups=groups),
        "probe": probe_accuracy(means, test=heldout, groups=groups),
        "words": word_accuracy(responses, test=tested, groups=groups),
        "silhouette": embed_scores(means, everywhere),
        "confounds": confounds(means, responses),
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

    groups = clusters_of(pd.concat([responses, tested]))

    def geometry() -> dict:
        tables: dict[str, pd.DataFrame] = {}

        def measured(name: str) -> pd.DataFrame:
            if not tables:
                heldout = response_means(model, tested, sites=("resid",))
                tables.update(geometry_tables(means_of(vectors), heldout, responses, tested, groups))
            return tables[name]

        given = {**of, "groups": digest([*groups.index, *groups.astype(str)])}
        paths = {name: out / "geometry" / f"{name}.parquet" for name in GEOMETRY}
        return geometry_summary({name: kept(path, given, lambda n=name: measured(n)) for name, path in paths.items()})

    def heads() -> dict:
        site_layers(model, "head")  # says at once where a model has no attention heads
        sizes = QUICK_HEADS if quick else HEADS
        words = _words(model, responses, vectors.emotions)
        patch = HeadTest("patch", words=words, n_queries=sizes["patched"])
        ablate = HeadTest(
            "ablate", words=words, judge=judge, n_queries=sizes["ablated"], max_new_tokens=sizes["max_new_tokens"]
        )
        given = {**of, "seed": seed, "judge": stable(judge), "sizes": stable(sizes)}
        effects = kept(
            out / "heads.parquet",
            given,
            lambda: head_effects(model, vectors, responses, test=patch, screen=sizes["screen"], seed=seed),
        )
        curve = kept(
            out / "ablation.parquet",
            given,
            lambda: ablation_curve(
                model, vectors, tested, ranked=effects, test=ablate, n_random=sizes["n_random"], seed=seed
            ),
        )
        return head_summary(effects, curve)

    of = {"fingerprint": model.fingerprint, "vectors": vectors_identity(vectors)}
    of |= {"responses": corpus_hash(responses), "tested": corpus_hash(tested)}
    found = {}
    for name, measure in (("geometry", geometry), ("heads", heads)):
        try:
            found[name] = for_json(measure(), decimals=4)
        except (FileError, MismatchError, ResourceError):
            raise
        except EmolabError as error:  # few texts, or a model without emotion: the rest of the study stands without it
            found[name] = {"not_measured": str(error)}
            say(f"{name} not measured: {error}")
    return found


def _words(model: Model, responses: pd.DataFrame, emotions: Sequence[str]) -> dict[str, list[str]] | None:
    """None: the words typical of each emotion. Where an emotion has none, plain names for all, so that they compare."""
    try:
        emotion_tokens(model, responses)
    except EmolabError:
        return {emotion: [emotion, ADJECTIVES.get(emotion, emotion)] for emotion in emotions}
    return None
