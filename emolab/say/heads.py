"""What heads say: which write the vector, which bring or keep the emotion beside random ones, and what they look at."""

from __future__ import annotations

import pandas as pd

from emolab.base.labels import head_name, order
from emolab.say.sentences import Sentences, Unmeasured, listed, measured, number


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
    certain = tested[tested["q"] < 0.05]
    said = []
    for emotion in order(tested["emotion"]):
        own = certain[certain["emotion"] == emotion].nlargest(top, "share")
        if own.empty:
            said.append(f"For {emotion} no single head differs from random directions (q < .05).")
            continue
        told = listed(
            f"{row.name} ({row.share:.0%}, {number(row.effect, row.lo, row.hi, signed=True)} nats)"
            for row in own.itertuples(index=False)
        )
        said.append(f"For {emotion} most comes with {told}.")
    way = "Per cents are of the way from the neutral to the instructed run"
    random = tested["random_direction"].abs().max()
    said.append(f"{way}; along random directions no head moves more than {random:.2f} nats.")
    n = tested["emotion"].nunique()
    strongest = certain.sort_values("share", ascending=False).groupby("emotion").head(top)["name"].value_counts()
    everywhere = strongest.index[strongest == n]
    said.append(f"Among the {top} strongest for every emotion: {listed(everywhere)}." if n > 1 else "")
    return Sentences(*said)


@measured
def screening(effects: pd.DataFrame) -> Sentences:
    """How well attribution told which heads matter, from `emolab.head_effects`.

    >>> emolab.say.screening(effects)
    """
    screened, tested = effects.attrs["screening"], effects[effects["n"] > 0]
    direct = tested["direct"].corr(tested["share"], method="spearman") if "direct" in tested else float("nan")
    low, high = screened["lo"], screened["hi"]
    more = number(screened["difference"], low, high, signed=True)
    return Sentences(
        f"The heads that attribution chose bring {more} nats more than random heads"
        + (": no difference was found." if low <= 0 <= high else "."),
        f"Over the tested heads the rank correlation with the patched effect is {screened['rank_correlation']:.2f} for "
        f"attribution and {direct:.2f} for the direct share.",
    )


@measured
def ablation_curve(curve: pd.DataFrame) -> Sentences:
    """How much emotion is left when the highest-ranked heads lose their emotion direction, beside random heads.

    >>> emolab.say.ablation_curve(curve)
    """
    most = curve[curve["k"] == curve["k"].max()]
    cells = most[most["emotion"] == "all"].set_index("order")[["kept", "lo", "hi"]]
    ranked, random = cells.loc["ranked"], cells.loc["random_heads"]
    said = [
        f"With {most['k'].iloc[0]} heads ablated {number(*ranked)} of the emotion is kept (1 is the instructed answer, "
        f"0 the neutral one), with as many random heads of the same layers {number(*random)}, along random directions "
        f"{number(*cells.loc['random_direction'])}."
    ]
    wide = curve.pivot(index=["emotion", "k"], columns="order", values=["lo", "hi"])
    below = (wide["hi", "ranked"] < wide["lo", "random_heads"]).groupby(level="emotion").any()
    apart = [e for e in order(curve["emotion"]) if e != "all" and below[e]]
    said.append(
        f"The ranked heads matter more than random ones for {listed(apart)}."
        if apart
        else "No difference between ranked and random heads was found for any emotion."
    )
    return Sentences(*said)


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
