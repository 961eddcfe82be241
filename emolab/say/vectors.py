"""What vectors and maps say: how long and how alike vectors are, by layer; what answers group by; what probes read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from emolab.base.labels import order
from emolab.geometry.tables import emotion_cosines, layer_by_layer, vector_norms
from emolab.say.sentences import (
    Sentences,
    Unmeasured,
    bounded,
    largest_row,
    listed,
    measured,
    smallest_row,
    where_largest,
    where_smallest,
)
from emolab.vectors.vectors import EmotionVectors


@measured
def norms(vectors: EmotionVectors, *, site: str = "resid") -> Sentences:
    """How long the vectors are against the residual stream.

    >>> emolab.say.norms(vectors)
    """
    share = vector_norms(vectors, site=site).groupby("layer")["relative"].mean()
    longest, last = where_largest(share), share.index[-1]
    most = f"; most at layer {longest} ({share.max():.0%})" if longest != last else ""
    return Sentences(
        f"Averaged over emotions the vectors have {share.iloc[0]:.0%} of the residual stream's norm at layer "
        f"{share.index[0]} and {share.iloc[-1]:.0%} at layer {last}{most}."
    )


@measured
def cosine_map(
    vectors: EmotionVectors, layers: int | list[int] | None = None, *, site: str = "resid", part: str = "specific"
) -> Sentences:
    """Which emotions are most and least alike, at some layers.

    >>> emolab.say.cosine_map(vectors, layers=[0, 15, 29])
    """
    table = emotion_cosines(vectors, site=site, part=part, layers=layers)
    table = table[table["emotion"] < table["other"]].dropna(subset="cosine")
    if table.empty:  # a single emotion, or vectors of nothing
        raise Unmeasured
    said = []
    for layer, pairs in table.groupby("layer"):
        most, least = largest_row(pairs, pairs["cosine"]), smallest_row(pairs, pairs["cosine"])
        said.append(
            f"At layer {layer} {_pair(most)} are most alike ({most['cosine']:+.2f}), {_pair(least)} least "
            f"({least['cosine']:+.2f})."
        )
    null = -1 / (len(vectors.emotions) - 1)
    said.append(f"Unrelated specific parts would lie at {null:+.2f}." if part == "specific" else "")
    return Sentences(*said)


def _pair(row: pd.Series) -> str:
    return listed(order([row["emotion"], row["other"]]))


@measured
def layer_map(vectors: EmotionVectors, *, site: str = "resid", part: str = "specific") -> Sentences:
    """Between which neighbouring layers the vectors change most, and how long one lasts.

    >>> emolab.say.layer_map(vectors)
    """
    table = layer_by_layer(vectors, site=site, part=part)
    mean = table.groupby(["layer", "other"])["cosine"].mean().unstack()
    cosine = mean.to_numpy()
    steps = pd.Series(np.diagonal(cosine, 1), index=mean.index[:-1]).dropna()
    edge, last = where_smallest(steps), len(mean) - 1
    middle = int(mean.index[last // 2])
    return Sentences(
        f"The vectors change most between layers {edge} and {edge + 1} (cosine {steps.min():.2f}; neighbouring layers "
        f"have {steps.median():.2f} in the median).",
        f"That of layer {middle} has cosine {cosine[middle, last]:.2f} with that of the last layer.",
    )


@measured
def shared_energy_curve(tables: Mapping[str, pd.DataFrame] | pd.DataFrame) -> Sentences:
    """How much of the vectors all emotions share, from `emolab.geometry.shared_energy`, beside shuffled labels.

    >>> emolab.say.shared_energy_curve({"resid": emolab.geometry.shared_energy(means)})
    """
    tables = tables if isinstance(tables, Mapping) else {"": tables}
    said = []
    for name, table in tables.items():
        curve = table.set_index("layer")
        first, last = curve.iloc[0], curve.iloc[-1]
        said.append(
            f"{f'At {name} all' if name else 'All'} emotions share {bounded(first, 'share')} of the vectors' energy at "
            f"layer {first.name} and {bounded(last, 'share')} at layer {last.name}; with shuffled labels "
            f"{first['null_mean']:.2f} and {last['null_mean']:.2f}."
        )
    return Sentences(*said)


@measured
def agreement_curve(tables: Mapping[str, pd.DataFrame]) -> Sentences:
    """How alike one emotion's vectors from two sources are in the second half of the layers, beside other emotions'.

    >>> emolab.say.agreement_curve({"answers and frames": emolab.geometry.vector_agreement(vectors, others)})
    """
    means = {name: _late(table)[["cosine", "mismatched", "random"]].mean() for name, table in tables.items()}
    best = max(means, key=lambda name: means[name]["cosine"])
    by_pair = "; ".join(
        f"{name}: {row['cosine']:.2f} for the same emotion, {row['mismatched']:+.2f} for different ones"
        for name, row in means.items()
    )
    return Sentences(
        f"In the second half of the layers the cosine is largest for {best} ({means[best]['cosine']:.2f}; random "
        f"directions stay below {means[best]['random']:.2f}).",
        f"By pair: {by_pair}." if len(means) > 1 else f"Different emotions have {means[best]['mismatched']:+.2f}.",
    )


def _late(table: pd.DataFrame) -> pd.DataFrame:
    """The second half of the layers."""
    return table[table["layer"] >= (table["layer"].max() + 1) // 2]


def _middle_and_last(table: pd.DataFrame) -> tuple[int, int]:
    layers = sorted(table["layer"].unique())
    return layers[len(layers) // 2], layers[-1]


@measured
def response_map(scores: pd.DataFrame) -> Sentences:
    """Whether answers group by condition, from `emolab.geometry.embed_scores`.

    >>> emolab.say.response_map(emolab.geometry.embed_scores(means, points))
    """
    full = scores[scores["method"] == "full"].set_index("layer")["silhouette"]
    best = where_largest(full)
    drawn = scores[(scores["layer"] == best) & (scores["method"] != "full")]
    maps = listed(f"{row.silhouette:+.2f} on the {row.method.upper()}" for row in drawn.itertuples())
    group = f"group by condition most at layer {best}:"
    if full.max() < 0.05:
        group = f"do not group by condition: at most, at layer {best},"
    return Sentences(f"The answers {group} silhouette {full.max():+.2f} in all dimensions, {maps}.")


@measured
def neighbours(purity: pd.DataFrame) -> Sentences:
    """By what an answer's neighbours are chosen, from `emolab.geometry.neighbour_purity`.

    >>> emolab.say.neighbours(emolab.geometry.neighbour_purity(means))
    """
    said = []
    for by, word in (("query_id", "question"), ("condition", "emotion")):
        own = purity[purity["by"] == by].set_index("layer")
        above = own["purity"] - own["null_hi"]
        layer = where_largest(above)
        if above.max() <= 0:
            said.append(f"Neighbours do not share their {word} more than under shuffled labels, at any layer.")
            continue
        few = own.index[above > 0]
        said.append(
            f"Neighbours share their {word} most at layer {layer}: {own.loc[layer, 'purity']:.2f} (shuffled labels "
            f"{own.loc[layer, 'null_mean']:.2f}), and more than shuffled labels at {len(few)} of {len(own)} layers."
        )
    return Sentences(*said)


@measured
def reliability_curve(tables: Mapping[str, pd.DataFrame]) -> Sentences:
    """How well vectors from two halves of the questions agree, from `emolab.geometry.split_half`.

    >>> emolab.say.reliability_curve({"specific": emolab.geometry.split_half(means, part="specific")})
    """
    said = []
    for part, table in tables.items():
        late = _late(table)
        mean = late.groupby("emotion")["cosine"].mean()
        best, least = where_largest(mean), where_smallest(mean)
        said.append(
            f"In the second half of the layers two halves of the questions give {part} vectors with cosine "
            f"{mean.mean():.2f}: best {best} ({mean.max():.2f}), least {least} ({mean.min():.2f}); shuffled labels "
            f"reach up to {late['null_hi'].mean():.2f}."
        )
    return Sentences(*said)


@measured
def probe_curve(probe: pd.DataFrame, *, words: pd.DataFrame | None = None) -> Sentences:
    """What a logistic probe reads of held-out answers, by layer, beside the words of the answers.

    >>> emolab.say.probe_curve(probe, words=words)
    """
    own = probe[(probe["emotion"] == "all") & (probe["probe"] == "logistic")].set_index("layer")
    third = max(1, len(own) // 3)
    first, last = own["accuracy"].iloc[:third].mean(), own["accuracy"].iloc[-third:].mean()
    top = own.iloc[-1]
    said = [
        f"The probe reads {first:.2f} of the held-out answers in the first third of the layers and {last:.2f} in the "
        f"last, {bounded(top, 'accuracy')} at the last layer (chance {top['chance']:.2f})."
    ]
    if words is not None:
        alone = words[words["emotion"] == "all"].iloc[0]
        overlap = top["lo"] <= alone["hi"] and alone["lo"] <= top["hi"]
        verdict = "overlap: no difference was found" if overlap else "lie apart"
        said += [f"The words alone give {bounded(alone, 'accuracy')}.", f"The two intervals {verdict}."]
    return Sentences(*said)


@measured
def confound_curve(table: pd.DataFrame) -> Sentences:
    """What the answers' activations vary with: emotion, question, length, tense, person (`emolab.geometry.confounds`).

    >>> emolab.say.confound_curve(emolab.geometry.confounds(means, responses))
    """
    said = []
    for layer in _middle_and_last(table):
        rows = table[table["layer"] == layer].dropna(subset="explained").sort_values("explained", ascending=False)
        if rows.empty:
            continue
        more = rows[rows["explained"] > rows["null_hi"]]
        none = rows[rows["explained"] <= rows["null_hi"]]["factor"]
        parts = [f"{factor} {share:.0%}" for factor, share in zip(more["factor"], more["explained"], strict=True)]
        rest = f"; {listed(none)} explain no more than by chance" if len(none) else ""
        varies = listed(parts, nothing="none of them")
        said.append(f"At layer {layer} the variance of the answers goes with {varies}{rest}.")
    return Sentences(*said)


@measured
def without_confounds(table: pd.DataFrame) -> Sentences:
    """What is left of the vectors without length, tense and person, from `emolab.geometry.without_confounds`.

    >>> emolab.say.without_confounds(emolab.geometry.without_confounds(means, responses)[1])
    """
    said = []
    for layer in _middle_and_last(table):
        rows = table[table["layer"] == layer].groupby("emotion")[["cosine", "kept", "null_kept"]].mean()
        least = where_smallest(rows["kept"])
        said.append(
            f"At layer {layer} the vectors keep {rows['kept'].mean():.0%} of their energy without them (shuffled "
            f"features: {rows['null_kept'].mean():.0%}), and cosine {rows['cosine'].mean():.2f}; {least} keeps least "
            f"({rows['kept'].min():.0%})."
        )
    return Sentences(*said)
