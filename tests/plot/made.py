"""Small tables by hand, of the columns that results have, and every figure drawn from them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import torch

from emolab import EmotionVectors, plot
from emolab.base.labels import EMOTIONS, NEUTRAL
from emolab.comparisons import claims
from emolab.comparisons.methods import METHODS
from emolab.geometry.confounding import FACTORS
from tests import claim_tables

LABELS = [*EMOTIONS, NEUTRAL]
META = {"model": "mini", "revision": None, "fingerprint": "abc", "n_responses": dict.fromkeys(LABELS, 12), "seed": 3}
ABOUT = {"model": {"name": "mini"}, "n": "12 queries", "seed": 4, "params": {"site": "attn", "layers": "15,16,17"}}
SETTING = {"site": "attn", "layers": "all", "part": "whole", "op": "add", "unit": "vector", "positions": "generated"}
SETTING |= {"heads": "all", "fade": np.inf}
N_LAYERS = 6


def noted(table: pd.DataFrame, **params) -> pd.DataFrame:
    table.attrs["about"] = {**ABOUT, "params": {**ABOUT["params"], **params}}
    return table


def made_of(columns: dict, values: dict, half: float = 0.0) -> pd.DataFrame:
    """Every combination of the columns, and beside them values: numbers, or draws between two bounds.

    half: of the interval lo to hi around the first value, if it has one.
    """
    rng = np.random.default_rng(0)
    table = pd.DataFrame(list(product(*columns.values())), columns=list(columns))
    for name, value in values.items():
        table[name] = rng.uniform(*value, size=len(table)) if isinstance(value, tuple) else value
    return noted(around(table, next(iter(values)), half) if half else table)


def unknown(given):
    """The same tables, claim or vectors with no value known; what the rows are about stays."""
    if isinstance(given, dict):
        return {name: unknown(table) for name, table in given.items()}
    if isinstance(given, EmotionVectors):
        return EmotionVectors({"resid": 0 * given.get("resid")}, given.emotions, given.resid_norm, given.meta)
    if isinstance(given, claims.Claim):
        return replace(given, table=unknown(given.table))
    if not isinstance(given, pd.DataFrame):
        return given
    values = set(given.select_dtypes("float")) - {"alpha", "dose", "layer", "depth"}
    return given.assign(**dict.fromkeys(values, np.nan))


def around(table: pd.DataFrame, value: str = "value", half: float = 0.1) -> pd.DataFrame:
    """The table with an interval around each value."""
    return table.assign(lo=table[value] - half, hi=table[value] + half)


def make_vectors(n_layers: int = 4) -> EmotionVectors:
    """5 emotions, 16 dimensions, all sharing a part."""
    g = torch.Generator().manual_seed(0)
    ev = torch.randn(5, n_layers, 16, generator=g) + 2 * torch.randn(1, n_layers, 16, generator=g)
    return EmotionVectors({"resid": ev}, EMOTIONS, torch.arange(1.0, 1.0 + n_layers), META)


def scored(alphas=(0, 1, 2, 4), controls=("none", "random", "shuffled"), emotions=EMOTIONS, n=8) -> pd.DataFrame:
    """Scores in which the share of hits with the vector's own direction is alpha/4, and 0 with a control."""
    rows = []
    for emotion, control, alpha, q in product(emotions, controls, alphas, range(n)):
        hit = control == "none" and q < n * alpha / 4
        top = emotion if hit else NEUTRAL
        p = {f"p_{label}": 0.9 if label == top else 0.02 for label in LABELS}
        score = {"adherence": 0.8 - 0.1 * alpha, "perplexity": 4.0 * (1 + alpha)}
        rows.append({"query_id": f"q{q}", "emotion": emotion, "alpha": alpha, "control": control, **score, **p})
    table = pd.DataFrame(rows)
    table.attrs["emolab"] = {"model": "mini", "fingerprint": "abc", "seed": 4}
    return table


def answers() -> pd.DataFrame:
    rows = [(f"q{q}", c, c if q else NEUTRAL) for c in LABELS for q in range(4)]
    p = [{f"p_{label}": float(label == top) for label in LABELS} for _, _, top in rows]
    return pd.DataFrame(rows, columns=["query_id", "condition", "top"]).drop(columns="top").join(pd.DataFrame(p))


def dose_summary(emotions=EMOTIONS) -> pd.DataFrame:
    columns = {"emotion": emotions, "control": ("none", "random", "shuffled"), "alpha": (0.0, 0.75, 1.25, 1.75)}
    columns["measure"] = ("target", "adherence", "perplexity_ratio", "overall")
    table = made_of(columns, {"value": (0.2, 0.9), "n": 8})
    told = table[(table["control"] == "none") & (table["alpha"] == 0)].assign(control="prompt")
    table = around(pd.concat([table, told], ignore_index=True))
    return noted(table, unit="breaking", alpha_star={"joy": 1.25}, best={"fear": 0.75})


def choice_shifts(emotions=EMOTIONS) -> pd.DataFrame:
    columns = {"emotion": emotions, "control": ("none", "random"), "alpha": (-1.0, 0.0, 0.5, 1.0)}
    table = made_of(columns, {"shift": (-0.2, 0.2), "n": 16})
    table = table.assign(value=0.4 + table["shift"], draws_lo=-0.2, draws_hi=table["shift"] + 0.1)
    return noted(around(table), unit="breaking", option="Yes")


def numbers() -> pd.DataFrame:
    """Choices by a number in the question, plain and steered, with two draws of a random direction."""
    columns = {"situation": ("missing-dog", "page"), "number": (1, 2, 5, 10, 100), "emotion": ("fear",)}
    table = made_of({**columns, "control": ("none", "random"), "seed": (0, 1)}, {"p": (0.2, 0.8)})
    return noted(
        table[(table["control"] == "random") | (table["seed"] == 0)].assign(query_id="q0", alpha=1.0, option="worried")
    )


def effects(n_layers=N_LAYERS, n_heads=4, emotions=("anger", "joy", "calm")) -> pd.DataFrame:
    columns = {"layer": range(n_layers), "head": range(n_heads), "emotion": emotions}
    values = {"effect": (-1, 1), "probe": 0.5, "chance": 0.25, "split_half": (0, 1), "q": (0, 0.2)}
    values |= {"random_direction": 0.01, "other_heads": -0.02, "test": "ablate", "measure": "words"}
    table = made_of(columns, values, half=0.2)
    return table.assign(share=-table["effect"] / 4, norm=table["effect"].abs())


def ablation() -> pd.DataFrame:
    columns = {"emotion": ("anger", "joy", "calm", "all"), "order": ("ranked", "random_heads", "random_direction")}
    table = made_of({**columns, "k": (0, 1, 2, 4)}, {})
    slope = table["order"].map({"ranked": 0.2, "random_heads": 0.01, "random_direction": 0.0})
    return around(table.assign(kept=1 - slope * table["k"]), "kept")


def neuron_curve() -> pd.DataFrame:
    """As `ablation`, of ten times as many neurons."""
    table = ablation()
    return noted(table.assign(order=table["order"].replace("random_heads", "random_neurons"), k=10 * table["k"]))


def sublayer_table() -> pd.DataFrame:
    """Attention writes 0.1 of the vector in each band, MLPs 0.2; attention carries half of the emotion, MLPs none."""
    columns = {"layers": ("0-1", "2-3", "all"), "site": ("attn", "mlp"), "emotion": ("joy", "sadness")}
    table = made_of(columns, {"random": 0.05, "gap": 2.0, "random_direction": -0.1, "p": 0.01, "n": 8})
    own = table["site"] == "attn"
    table = table.assign(written=np.where(own, 0.1, 0.2), q=np.where(own, 0.02, 0.5))
    table = table.assign(share=0.5 * own, effect=-1.0 * own)
    return noted(table.assign(lo=table["effect"] - 0.2, hi=table["effect"] + 0.4), test="ablate")


def points(layers=(0, 2, 5), by=("query_id", "condition")) -> pd.DataFrame:
    columns = {"query_id": [f"q{i}" for i in range(6)], "condition": LABELS, "layer": layers, "method": ("pca", "umap")}
    return made_of(columns, {"x": (0, 1), "y": (0, 1)})


def map_scores(layers=(0, 2, 5)) -> pd.DataFrame:
    columns = {"layer": layers, "method": ("pca", "umap", "full")}
    return made_of(
        columns, {"trustworthiness": (0.5, 1), "silhouette": (-0.1, 0.3), "null_mean": 0, "null_hi": 0.1, "p": 0.2}
    )


def by_layer(**values) -> pd.DataFrame:
    """One row per emotion and layer, with values and, of the first one, an interval."""
    return made_of({"emotion": EMOTIONS, "layer": range(N_LAYERS)}, values, half=0.1)


def shared_energy() -> pd.DataFrame:
    values = {"share": (0.5, 0.8), "null_mean": 0.9, "null_lo": 0.85, "null_hi": 0.95, "floor": 0.2}
    return made_of({"layer": range(N_LAYERS)}, values, half=0.1)


def probes() -> pd.DataFrame:
    columns = {"layer": range(N_LAYERS), "probe": ("centroid", "logistic"), "emotion": ("all", *LABELS)}
    return made_of(columns, {"accuracy": (0.4, 0.9), "chance": 1 / 6, "p": 0.05}, half=0.1)


def words() -> pd.DataFrame:
    return made_of({"emotion": ("all", *LABELS)}, {"accuracy": 0.5, "probe": "words"})


def parts() -> pd.DataFrame:
    columns = {"part": ("unsteered", "whole", "specific", "shared", "random"), "emotion": ("all",)}
    values = {"value": (0.2, 0.8), "minus_whole": 0.1, "minus_whole_lo": (-0.2, 0.1), "minus_whole_hi": 0.3}
    return made_of({**columns, "measure": ("target", "leak", "emotional")}, values, half=0.1)


def differences() -> pd.DataFrame:
    values = {"difference": (0, 0.5), "q": (0, 0.1), "n": 8, "control": "random", "measure": "p_target"}
    return made_of({"emotion": EMOTIONS, "alpha": (0.5, 1.0, 2.0)}, values, half=0.2)


def layer_shares() -> pd.DataFrame:
    columns = {"emotion": EMOTIONS, "layer": range(N_LAYERS), "control": ("none", "random")}
    single = made_of(columns, {"value": (0.2, 0.8), "kind": "single layer"})
    columns = {"emotion": EMOTIONS, "kind": ("all layers at once", "unsteered")}
    levels = made_of(columns, {"value": (0, 1), "control": "none"})
    return noted(around(pd.concat([single, levels], ignore_index=True)), alpha="0.4", unit="residual")


def settings() -> pd.DataFrame:
    named = ("attn · whole · layers 15-29", "attn · specific · layers 15-29", "resid · whole · layers 15-29")
    return made_of({"setting": named, "emotion": (*EMOTIONS, "mean")}, {"value": (0, 0.8)}, half=0.2)


def mixtures() -> pd.DataFrame:
    columns = {"kind": ("none", "prompt", "random"), "mixture": ("0.5 anger + 0.5 joy", "0.7 joy + 0.3 sadness")}
    return made_of({**columns, "judged": LABELS}, {"share": (0, 0.4), "mixed": 0.4, "lo": 0.2, "hi": 0.6, "n": 8})


def agreement() -> pd.DataFrame:
    rows = [("embedding", "lexicon", 0.91, 0.85, 0.96, 130), ("embedding", "self_report", 0.42, 0.3, 0.55, 130)]
    rows.append(("lexicon", "self_report", np.nan, np.nan, np.nan, 130))
    return noted(pd.DataFrame(rows, columns=["judge_a", "judge_b", "kappa", "lo", "hi", "n"]))


OVERALL = {"emotion vector": 0.7, "pca": 0.7, "probe": 0.4, "lora": 0.8, "instruction": 0.9, "few_shot": 0.1}
OVERALL |= {"random": 0.05, "unsteered": 0.02}
DOSED = ("emotion vector", "pca", "probe", "lora", "random")
assert set(OVERALL) == {*METHODS, "unsteered"}


def methods() -> pd.DataFrame:
    """Value 0.9 of the best at the doses tried, damage 3 times the dose, joy half of all."""
    rows = []
    for method, top in OVERALL.items():
        places = [("best", 1.0 if method != "emotion vector" else np.nan)]
        places += [("equal damage", 1.2)] if method in (*DOSED, "instruction") else []
        places += [("tried", dose) for dose in ((0.5, 1.0, 2.0) if method in DOSED else (1.0,))]
        measures = ("emotion", "adherence", "fluency", "overall", "damage")
        for emotion, (at, dose), measure in product(("all", "joy"), places, measures):
            value = top * (0.9 if at == "tried" else 1) * (0.5 if emotion == "joy" else 1)
            if measure == "damage":
                value = 0.0 if method == "unsteered" else 3 * (1 if np.isnan(dose) else dose)
            row = {"method": method, "at": at, "emotion": emotion, "dose": dose, "measure": measure}
            rows.append({**row, "value": value, "lo": 0.9 * value, "hi": 1.1 * value, "seconds": 2.0, "speed": 1.25})
    return noted(pd.DataFrame(rows))


def both_scales(shape) -> pd.DataFrame:
    controls = ("none", "random", "shuffled")
    made = [claim_tables.curves(shape, scale=s, controls=controls, n=12) for s in ("judge", "log-odds")]
    return noted(pd.concat(made))


def claim(name: str):
    if name == "monotone":
        return claims.monotone(both_scales(lambda a: a if a <= 2 else 0.0))
    if name == "preservation":
        return claims.preservation(noted(claim_tables.drift(lambda a: 0.2 * a, lambda a: 0.02 * a**2, n=12)))
    if name == "linear":
        return claims.linear(both_scales(lambda a: 2.0 * a))
    kinds = {"whole": lambda a, b: a - a * b, "specific": lambda a, b: a, "random": lambda a, b: 0.0}
    return claims.additive(noted(claim_tables.pairs(kinds, n=12)))


def purity() -> pd.DataFrame:
    values = {"purity": (0.2, 0.8), "null_mean": 0.1, "null_hi": 0.15, "p": 0.01}
    return made_of({"layer": range(N_LAYERS), "by": ("query_id", "condition")}, values)


def confounded() -> pd.DataFrame:
    """The question explains 0.4, each next factor 0.08 less, at all layers."""
    table = made_of({"layer": range(N_LAYERS), "factor": FACTORS}, {"null_mean": 0, "null_hi": 0.01, "p": 0.01})
    return table.assign(explained=0.4 - 0.08 * table["factor"].map(FACTORS.index))


def head_cosines() -> pd.DataFrame:
    """0.6 within a head, 0.1 within an emotion, 0 else."""
    table = made_of({"layer": range(N_LAYERS), "alike": ("head", "emotion", "neither")}, {"random": 0.02})
    return around(table.assign(cosine=table["alike"].map({"head": 0.6, "emotion": 0.1, "neither": 0.0})), "cosine")


def head_points() -> pd.DataFrame:
    columns = {"layer": range(N_LAYERS), "head": range(4), "emotion": EMOTIONS}
    return made_of(columns, {"x": (0, 1), "y": (0, 1), "norm": (0, 1), "trustworthiness": 0.8})


def reliability() -> pd.DataFrame:
    return by_layer(cosine=(0.3, 0.9), null_lo=-0.3, null_hi=0.3)


def affect_points() -> pd.DataFrame:
    """Sixty-four words on a ring, crowded at the left."""
    angle = np.linspace(0, 2 * np.pi, 64) ** 1.2
    table = pd.DataFrame({"label": [f"emotion {i}" for i in range(64)], "valence": 5 + 3 * np.cos(angle)})
    table = table.assign(read_valence=5 + 2.5 * np.cos(angle), read_arousal=5 + 1.5 * np.sin(angle))
    table = noted(table, site="resid", layer=3)
    clusters = {"n": 8, "rand": 0.4}
    table.attrs |= {"r": {"valence": 0.9, "arousal": 0.1}, "null_hi": {"valence": 0.2, "arousal": 0.25}}
    table.attrs["clusters"] = clusters
    return table


def affect_fit() -> pd.DataFrame:
    methods = ("ridge", "ridge, other frames", "component")
    columns = {"layer": range(N_LAYERS), "dimension": ("valence", "arousal"), "method": methods}
    table = made_of(columns, {"r": 0.8, "lo": 0.7, "hi": 0.9, "null": 0.0, "null_hi": 0.25, "p": 0.01, "component": 1})
    words = table[(table["layer"] == 0) & (table["method"] == "ridge")].assign(layer=-1, method="word embedding", r=0.5)
    return noted(pd.concat([table, words], ignore_index=True), site="resid")


def affect_shifts() -> pd.DataFrame:
    columns = {"emotion": ("valence", "arousal"), "control": ("none", "random"), "alpha": (-1.0, 0.5, 1.0)}
    table = made_of({**columns, "measure": ("valence", "arousal", "adherence")}, {"unsteered": 5.0, "n": 8})
    own = (table["emotion"] == table["measure"]) & (table["control"] == "none") & (table["emotion"] == "valence")
    table = table.assign(shift=table["alpha"] * own).assign(value=lambda t: 5 + t["shift"])
    return noted(around(table, "shift", 0.2))


def turning() -> pd.DataFrame:
    columns = {"control": ("none", "random"), "role": ("first", "second", "others"), "at": range(-30, 30)}
    table = made_of(columns, {"score": 0.0})
    own = (table["control"] == "none") & (table["role"] == np.where(table["at"] < 0, "first", "second"))
    table = noted(around(table.assign(score=own * 0.8), "score", 0.2), site="resid", layers="20")
    table.attrs |= {"told": {"none": (0.7, 0.6, 0.8), "random": (0.2, 0.1, 0.3)}, "chance": 0.2, "lag": 4}
    return table


def ranked() -> pd.DataFrame:
    table = made_of({"layer": range(N_LAYERS), "control": ("none", "random")}, {"value": 0.2})
    table = table.assign(value=table["value"] + 0.04 * table["layer"] * (table["control"] == "none"))
    table = noted(around(table), site="attn")
    table.attrs["chance"] = 0.2
    return table


def two_maps(measures=("rsa", "cka", "cosine"), layers=30) -> pd.DataFrame:
    values = {"value": (0.7, 1), "null_mean": 0.0, "null_hi": 0.5, "p": 0.01}
    values |= {"halves": (0.4, 0.6), "ceiling": (0.5, 0.7)}
    table = made_of({"measure": measures, "layer": range(layers)}, values)
    means = table.groupby("measure", sort=False, as_index=False).mean().assign(layer=np.nan)
    table = pd.concat([table, means], ignore_index=True).astype({"layer": "Int64"})
    table = table.assign(other_layer=table["layer"], depth=table["layer"] / (layers - 1))
    for name in ("halves", "ceiling"):
        table = table.assign(**{f"{name}_lo": table[name] - 0.2, f"{name}_hi": table[name] + 0.2})
    table.attrs["left_out"] = {}
    return noted(table, site="resid", part="specific")


def two_doses(names=("mini", "mini, tuned")) -> pd.DataFrame:
    columns = {"model": [*names, f"{names[1]} - {names[0]}"], "emotion": ("all", "fear", "joy")}
    table = made_of({**columns, "control": ("none", "random"), "alpha": (0.0, 0.5, 1.0, 1.5, 2.0)}, {"n": 16})
    table = table[(table["control"] == "none") | (table["alpha"] > 0)]
    shares = table["alpha"].where(table["control"] == "none", 0.1) / 2.5 + 0.1 * (table["model"] == names[1])
    shares = shares.mask(~table["model"].isin(names), 0.1)
    table = around(table.assign(value=shares), half=0.08)
    beyond = table[(table["control"] == "none") & (table["alpha"] > 0)].assign(control="beyond random")
    return noted(pd.concat([table, beyond], ignore_index=True), unit="breaking")


def traced(emotions=EMOTIONS) -> pd.DataFrame:
    """Three answers, steered ones pointing to the last emotion."""
    columns = {"arm": ("unsteered", "steered", "random"), "position": range(30), "emotion": emotions}
    table = made_of(columns, {"score": (0.0, 1.0)})
    return noted(
        table.assign(score=table["score"] + 2.0 * ((table["arm"] == "steered") & (table["emotion"] == emotions[-1])))
    )


FIGURES = {
    "token_trace": lambda: plot.token_trace(traced()),
    "turning_curve": lambda: plot.turning_curve(turning()),
    "rank_curve": lambda: plot.rank_curve(ranked()),
    "two_models": lambda: plot.two_models(two_maps(), two_doses()),
    "circumplex": lambda: plot.circumplex(affect_points()),
    "affect_curve": lambda: plot.affect_curve(affect_fit()),
    "affect_shift": lambda: plot.affect_shift(affect_shifts()),
    "norms": lambda: plot.norms(make_vectors(30)),
    "cosine_by_layer": lambda: plot.cosine_by_layer(make_vectors(30)),
    "cosine_map": lambda: plot.cosine_map(make_vectors(), 2),
    "cosine_grid": lambda: plot.cosine_grid(make_vectors(30), part="specific"),
    "layer_map": lambda: plot.layer_map(make_vectors(30)),
    "shared_energy_curve": lambda: plot.shared_energy_curve({"resid": shared_energy(), "attn": shared_energy()}),
    "reliability_curve": lambda: plot.reliability_curve({"whole": reliability(), "specific": reliability()}),
    "agreement_curve": lambda: plot.agreement_curve(
        {"own answers and topics": by_layer(cosine=(0, 1), mismatched=-0.1, random=0.1)}
    ),
    "response_map": lambda: plot.response_map(points(), map_scores()),
    "probe_curve": lambda: plot.probe_curve(probes(), words=words()),
    "confound_curve": lambda: plot.confound_curve(confounded()),
    "instruction_following": lambda: plot.instruction_following(answers()),
    "judge_agreement": lambda: plot.judge_agreement(agreement()),
    "dose_response": lambda: plot.dose_response(dose_summary()),
    "choice_curve": lambda: plot.choice_curve(choice_shifts()),
    "effect_forest": lambda: plot.effect_forest(differences()),
    "layer_curve": lambda: plot.layer_curve(layer_shares()),
    "site_map": lambda: plot.site_map(settings()),
    "mixture_map": lambda: plot.mixture_map(mixtures()),
    "purity_dots": lambda: plot.purity_dots(parts()),
    "head_map": lambda: plot.head_map(effects(), "share"),
    "head_forest": lambda: plot.head_forest(effects()),
    "head_umap": lambda: plot.head_umap(head_points(), head_cosines()),
    "ablation_curve": lambda: plot.ablation_curve(ablation()),
    "heads_or_neurons": lambda: plot.heads_or_neurons(ablation(), neuron_curve()),
    "sublayers": lambda: plot.sublayers(sublayer_table()),
    "tradeoff": lambda: plot.tradeoff(methods()),
    "claim_monotone": lambda: plot.claim_monotone(claim("monotone")),
    "claim_preservation": lambda: plot.claim_preservation(claim("preservation")),
    "claim_linear": lambda: plot.claim_linear(claim("linear")),
    "claim_additive": lambda: plot.claim_additive(claim("additive")),
    "signature": lambda: plot.signature(
        points(),
        purity(),
        made_of({"emotion": EMOTIONS, "layer": range(6), "other": range(6)}, {"cosine": (0, 1)}),
        effects(),
    ),
}
