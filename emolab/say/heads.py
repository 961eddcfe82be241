"""What heads say: which write the vector, which bring or keep the emotion beside random ones, and what they look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from emolab.base.labels import head_name, order
from emolab.base.stats import LEVEL
from emolab.base.tables import about
from emolab.say.sentences import Sentences, Unmeasured, bounded, listed, measured, number, too_few


def adds(table: pd.DataFrame) -> bool:
    """Whether a test of causes adds to the neutral run what it tests; else it takes it out of the instructed one."""
    return about(table)["params"].get("test") == "steer"


def changed(curve: pd.DataFrame) -> str:
    """What a curve changes: "heads" or "neurons"."""
    return "neurons" if "random_neurons" in set(curve["order"]) else "heads"


@measured
def head_map(maps: pd.DataFrame, *, top: int = 5) -> Sentences:
    """Which heads write the last layer's vector, from `emolab.heads.head_maps`.

    >>> emolab.say.head_map(maps)
    """
    said = []
    for emotion in order(maps["emotion"]):
        own = maps[maps["emotion"] == emotion].sort_values("direct", ascending=False)
        said.append(
            f"For {emotion} {listed(own['name'].head(top))} write {own['direct'].head(top).sum():.2f} of the last "
            f"layer's vector directly, all {len(own)} heads together {own['direct'].sum():.2f}."
        )
    halves = maps["split_half"]
    strong = halves[maps["direct"].abs() > 0.01].median()
    said.append(
        f"Two halves of the questions give a head's vector with cosine {halves.median():.2f} in the median"
        + (f", {strong:.2f} for heads that write more than a hundredth." if strong == strong else ".")
    )
    return Sentences(*said)


@measured
def head_umap(cosines: pd.DataFrame) -> Sentences:
    """Whether heads group by what each does or by emotion, from `emolab.heads.head_cosines`.

    >>> emolab.say.head_umap(emolab.heads.head_cosines(vectors))
    """
    mean = cosines.groupby("alike")["cosine"].mean()
    verdict = "by what each head does, not by emotion" if mean["head"] > mean["emotion"] else "by emotion"
    return Sentences(
        f"Within a layer the vectors of heads group {verdict}: cosine {mean['head']:.2f} for one head under two "
        f"emotions, {mean['emotion']:.2f} for two heads under one emotion, {mean['neither']:.2f} for two heads under "
        f"two emotions (random directions stay within {cosines['random'].max():.2f})."
    )


@measured
def head_forest(effects: pd.DataFrame, *, top: int = 3) -> Sentences:
    """Which heads bring most of the emotion when they are patched, from `emolab.head_effects`.

    >>> emolab.say.head_forest(effects)
    """
    tested = effects[effects["n"] > 0]
    if tested.empty:
        raise Unmeasured
    certain, few = tested[tested["q"] < LEVEL], too_few(tested)
    said = [few]
    for emotion in order(tested["emotion"]):
        strongest = certain[certain["emotion"] == emotion].nlargest(top, "share")
        heads = listed(
            f"{row['name']} ({row['share']:.0%}, {bounded(row, 'effect', signed=True)} nats)"
            for _, row in strongest.iterrows()
        )
        if len(strongest):
            said.append(f"For {emotion} most comes with {heads}.")
        elif not few:
            said.append(f"For {emotion} no single head differs from random directions (q < .05).")
    said.append(
        "Per cents are of the way from the neutral to the instructed run; along random directions no head moves more "
        f"than {tested['random_direction'].abs().max():.2f} nats."
    )
    n = tested["emotion"].nunique()
    among = certain.sort_values("share", ascending=False).groupby("emotion").head(top)["name"].value_counts()
    everywhere = listed(among.index[among == n])
    said.append(f"Among the {top} strongest for every emotion: {everywhere}." if n > 1 and not few else "")
    return Sentences(*said)


@measured
def screening(effects: pd.DataFrame) -> Sentences:
    """How well attribution told which heads matter, from `emolab.head_effects`.

    >>> emolab.say.screening(effects)
    """
    screened, tested = effects.attrs["screening"], effects[effects["n"] > 0]
    direct = tested["direct"].corr(tested["share"], method="spearman") if "direct" in tested else float("nan")
    verdict = ": no difference was found" if screened["lo"] <= 0 <= screened["hi"] else ""
    return Sentences(
        f"The heads that attribution chose bring {bounded(screened, 'difference', signed=True)} nats more than random "
        f"heads{verdict}.",
        f"Over the tested heads the rank correlation with the patched effect is {screened['rank_correlation']:.2f} for "
        f"attribution and {direct:.2f} for the direct share.",
    )


@measured
def ablation_curve(curve: pd.DataFrame) -> Sentences:
    """How much emotion is left, or brought, with the highest-ranked heads (or neurons), beside random ones.

    >>> emolab.say.ablation_curve(curve)
    """
    what, steer = changed(curve), adds(curve)
    most = curve[curve["k"] == curve["k"].max()]
    cells = most[most["emotion"] == "all"].set_index("order")
    wide = curve.pivot(index=["emotion", "k"], columns="order", values=["lo", "hi"])
    less, more = ("ranked", f"random_{what}")[:: -1 if steer else 1]
    apart = (wide["hi", less] < wide["lo", more]).groupby(level="emotion").any()
    matter = [e for e in order(curve["emotion"]) if e != "all" and apart[e]]
    return Sentences(
        f"With {most['k'].iloc[0]:,} {what} {'added' if steer else 'ablated'} {bounded(cells.loc['ranked'], 'kept')} "
        f"of the emotion is {'brought' if steer else 'kept'} (1 is the instructed answer, 0 the neutral one), with as "
        f"many random {what} of the same layers {bounded(cells.loc[f'random_{what}'], 'kept')}, along random "
        f"directions {bounded(cells.loc['random_direction'], 'kept')}.",
        f"The ranked {what} matter more than random ones for {listed(matter)}."
        if matter
        else f"No difference between ranked and random {what} was found for any emotion.",
    )


@measured
def neuron_map(neurons: pd.DataFrame, *, top: Sequence[int] = (10, 100, 1000)) -> Sentences:
    """How few neurons write the last layer's vector, from `emolab.heads.neuron_map`.

    >>> emolab.say.neuron_map(neurons)
    """
    said = []
    for emotion in order(neurons["emotion"]):
        own = neurons[neurons["emotion"] == emotion].sort_values("direct", ascending=False)
        written = own["direct"].cumsum().to_numpy()
        counts = [k for k in top if k <= len(own)]
        said.append(
            f"For {emotion} the {listed(f'{k:,}' for k in counts)} neurons that write most of the last layer's vector "
            f"write {listed(f'{written[k - 1]:.2f}' for k in counts)} of it, and all {len(own):,} together "
            f"{written[-1]:.2f}; first come {listed(own['name'].head(3))}."
        )
    return Sentences(*said)


@measured
def neuron_words(table: pd.DataFrame, words: Mapping[str, Sequence[str]]) -> Sentences:
    """How many neurons raise a word of their emotion, and how many one of another emotion, which is the control.

    >>> emolab.say.neuron_words(emolab.heads.neuron_words(model, top), {"joy": ["happy"], "sadness": ["sad"]})

    words: {emotion: words}, of at least the emotions of the table; a token counts as one of them where it is all of it.
    """
    said = []
    raised = table[table["direction"] == "raised"]
    token = raised["token"].str.strip().str.lower()
    for emotion in order(table["emotion"]):
        here = raised["emotion"] == emotion
        others = [word for other, some in words.items() if other != emotion for word in some]
        own, other = (raised.loc[here & token.isin(some), "name"].nunique() for some in (words[emotion], others))
        said.append(
            f"Of {raised.loc[here, 'name'].nunique()} neurons that write {emotion}, {own} raise a word of it among "
            f"their first {table['rank'].max()}, and {other} one of another emotion."
        )
    return Sentences(*said)


@measured
def heads_or_neurons(heads: pd.DataFrame, neurons: pd.DataFrame) -> Sentences:
    """How many heads, and how many neurons, it takes to bring half of the emotion, or to take half of it away.

    >>> emolab.say.heads_or_neurons(emolab.ablation_curve(..., test="steer"), emolab.neuron_effects(..., test="steer"))
    """
    said, few = [], []
    for curve, what in ((heads, "heads"), (neurons, "neurons")):
        own = curve[(curve["emotion"] == "all") & (curve["k"] > 0)].set_index("k")
        ranked, random = own[own["order"] == "ranked"], own[own["order"] == f"random_{what}"]
        enough = ranked.index[ranked["kept"] >= 0.5 if adds(curve) else ranked["kept"] <= 0.5]
        k = enough.min() if len(enough) else ranked.index.max()
        few.append((what, k if len(enough) else None))
        said.append(
            f"{k:,} {what} {'bring' if adds(curve) else 'leave, when ablated,'} {bounded(ranked.loc[k], 'kept')} of "
            f"the emotion, as many random ones of the same layers {bounded(random.loc[k], 'kept')}."
        )
    half = [f"{k:,} {what}" for what, k in few if k is not None]
    none = listed((what for what, k in few if k is None), nothing="")
    if not half:
        return Sentences(f"No number of {none} carries half of the emotion.", *said)
    rest = f"; no number of {none} does" if none else ""
    first = f"Of the numbers tried, {listed(half)} are the fewest that carry half of the emotion{rest}."
    return Sentences(first, *said)


@measured
def sublayers(table: pd.DataFrame) -> Sentences:
    """Attention or MLPs: what each writes of the vector and what its shift causes, from `sublayer_effects`.

    >>> emolab.say.sublayers(emolab.heads.sublayer_effects(model, vectors, responses))
    """
    verb = "bring" if adds(table) else "take with them"
    said = []
    for emotion in order(table["emotion"]):
        rows = table[table["emotion"] == emotion]
        whole = rows[rows["layers"] == rows["layers"].iloc[-1]].set_index("site")
        parts = []
        for site, name in (("attn", "attention layers"), ("mlp", "MLPs")):
            row = whole.loc[site]
            verdict = "" if row["q"] < LEVEL else ", no difference was found"
            parts.append(
                f"{name} write {row['written']:.2f} of the vector (random directions at most {row['random']:.2f}) and "
                f"{verb} {row['share']:.0%} of the emotion ({bounded(row, 'effect', signed=True)} nats; along random "
                f"directions {number(row['random_direction'], signed=True)}{verdict})"
            )
        said.append(f"For {emotion} all {'; all '.join(parts)}.")
    return Sentences(*said, too_few(table))


@measured
def attention(pattern: pd.DataFrame) -> Sentences:
    """What a head looks at while the answer is written, from `emolab.heads.attention_pattern`.

    >>> emolab.say.attention(pattern)
    """
    begin = pattern["from_position"].min()  # the last token of the prompt
    place = (pattern["position"] > 0).astype(int) + (pattern["position"] > begin)
    paid = pattern.groupby(place)["weight"].sum() / pattern["from_position"].nunique()
    name = head_name(pattern.attrs["layer"], pattern.attrs["head"])
    return Sentences(
        f"{name} pays {paid.get(0, 0):.0%} of its attention to the first token of all, {paid.get(1, 0):.0%} to the "
        f"rest of the prompt and {paid.get(2, 0):.0%} to the answer itself."
    )
