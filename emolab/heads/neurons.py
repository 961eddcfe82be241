"""MLP neurons: what single ones write of an emotion's vector, the words that they raise, what they cause together.

A neuron writes its activation times its row of W_out, so that the emotional shift of its activation says exactly what
it adds to the vector at `mlp` (Wang et al. 2025, arXiv 2510.11328). Tens of thousands of neurons are too many to be
tested one by one: causes are tested of the first k of this ranking together.

>>> vectors = emolab.extract_vectors(model, responses, sites=("resid", "mlp", "neuron"))
>>> emolab.heads.neuron_map(model, vectors).nlargest(5, "direct")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from emolab.base.errors import EmolabError, need_number, need_table
from emolab.base.labels import neuron_name
from emolab.base.tables import noted, span
from emolab.heads.attribution import extreme_words, readout
from emolab.heads.curves import curve_of, ranking
from emolab.heads.patching import HeadTest, setup
from emolab.models.model import Model
from emolab.models.sites import neuron_weight, site_layers
from emolab.steering.head_edits import Heads
from emolab.steering.shifts import ShiftSpace
from emolab.vectors.vectors import EmotionVectors, check_vectors


def neuron_map(model: Model, vectors: EmotionVectors) -> pd.DataFrame:
    """What each MLP neuron writes of each emotion's vector.

    >>> neurons = emolab.heads.neuron_map(model, vectors)
    >>> neurons.query("emotion == 'joy'").nlargest(5, "direct")

    vectors: with sites "neuron" and "mlp". Columns, one row per neuron and emotion:

    `layer`, `neuron`, `name`   L18N734 is neuron 734 of layer 18, both counted from 0.
    `shift`          by how much the neuron's mean activation is higher under the emotion.
    `norm`           length of what it writes: the shift times its row of W_out.
    `contribution`   that, as a signed share of the layer's MLP vector: projection over that vector's length. Neurons of
                     a layer sum to 1.
    `direct`         the same against the last layer's residual vector (NaN without site "resid").

    Layers whose MLP is a mixture of experts, where a neuron has no single row of W_out, are left out. Raises
    EmolabError without these sites, and for quantised weights.
    """
    check_vectors(model, vectors)
    shifts, mlp = vectors.get("neuron").double(), vectors.get("mlp").double()
    last = vectors.get("resid").double()[:, -1] if "resid" in vectors.sites else torch.full_like(mlp[:, 0], torch.nan)
    tables = []
    for layer in site_layers(model, "neuron"):
        rows = neuron_weight(model, layer, torch.float64)
        names = [neuron_name(layer, neuron) for neuron in range(len(rows))]
        for e, emotion in enumerate(vectors.emotions):
            table = pd.DataFrame({"layer": layer, "neuron": range(len(rows)), "name": names, "emotion": emotion})
            shift = shifts[e, layer, : len(rows)]
            table["shift"], table["norm"] = shift.numpy(), (shift.abs() * rows.norm(dim=-1)).numpy()
            for name, whole in (("contribution", mlp[e, layer]), ("direct", last[e])):
                size = whole @ whole
                table[name] = (shift * (rows @ whole) / torch.where(size > 1e-18, size, torch.nan)).numpy()
            tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    n = f"{len(table) // len(vectors.emotions)} neurons"
    return noted(table, vectors.meta, n=n, params={"part": vectors.meta.get("part", "whole")})


def neuron_words(model: Model, neurons: pd.DataFrame, *, n: int = 6) -> pd.DataFrame:
    """The words that neurons raise and lower most as they shift, by the logit lens of their rows of W_out.

    >>> top = emolab.heads.neuron_map(model, vectors).query("emotion == 'joy'").nlargest(3, "direct")
    >>> emolab.plot.words_table(emolab.heads.neuron_words(model, top))

    neurons: rows of `neuron_map`. Columns: `emotion`, `layer`, `neuron`, `name`, `direction` (raised, lowered: of a
    neuron whose activation falls under the emotion, what it then raises), `rank`, `token`, `logit` (centred over the
    vocabulary, as if what the neuron writes were the residual stream).
    """
    need_table(neurons, ("layer", "neuron", "name", "emotion", "shift"), "emolab.heads.neuron_map")
    need_number("n", n, 1, whole=True)
    weights = {int(layer): neuron_weight(model, layer, torch.float32) for layer in neurons["layer"].unique()}
    places = zip(neurons["layer"].astype(int), neurons["neuron"].astype(int), strict=True)
    shift = torch.from_numpy(neurons["shift"].to_numpy(float, copy=True))
    written = torch.stack([weights[layer][neuron] for layer, neuron in places]) * shift[:, None]
    key = ["emotion", "layer", "neuron", "name"]
    rows = []
    for own, logit in zip(neurons[key].to_numpy(object).tolist(), readout(model, written), strict=True):
        rows += [(*own, *word) for word in extreme_words(model, logit, n)]
    return pd.DataFrame(rows, columns=[*key, "direction", "rank", "token", "logit"])


def neuron_effects(
    model: Model,
    vectors: EmotionVectors,
    responses: pd.DataFrame,
    *,
    test: HeadTest | str = "ablate",
    ranked: pd.DataFrame | Mapping[str, Heads] | None = None,
    ks: Sequence[int] = (1, 10, 100, 1000),
    n_random: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """How much emotion goes, or comes, with the first k neurons of a ranking, beside random neurons of the same layers.

    >>> curve = emolab.neuron_effects(model, vectors, responses, test="steer")
    >>> curve.query("emotion == 'all' and k == 1000")[["order", "kept", "lo", "hi"]]
    >>> emolab.plot.ablation_curve(curve)

    Args:
        vectors: with site "neuron"; and "mlp" and "resid" where no ranking is given.
        responses: as of `emolab.ablation_curve`, and so is `n_random`.
        test: "ablate": in the instructed run the neurons' activations lose their emotional shift, from the last prompt
            token on, and keep all else that they do. "steer": in the neutral run they get it; then `kept` is the share
            of the emotion that they bring.
        ranked: a table of `neuron_map`, ranked by `direct`, or {emotion: [(layer, neuron), ...]}; default the map of
            these vectors.
        ks: numbers of neurons.

    Returns:
        What `emolab.ablation_curve` returns, with order "ranked", "random_neurons", or "random_direction": the shifts
        of the ranked neurons, each up or down at random, so that as much is changed.

    Raises:
        EmolabError: vectors without these sites, test "patch", an architecture that rescales the MLP's output (Gemma),
            and as `emolab.ablation_curve`.
    """
    space = ShiftSpace(model, vectors, ["neuron"])
    trial = setup(space, responses, test, seed, ops=("ablate", "steer"))
    ranked = neuron_map(model, vectors) if ranked is None else ranked
    rankings = {emotion: ranking(ranked, emotion, "neuron") for emotion in vectors.emotions}
    unknown = [x for places in rankings.values() for x in places if not 0 <= x[1] < space.sizes.get(x[0], 0)]
    if unknown:
        raise EmolabError(
            f"{model.name!r} has no neuron {neuron_name(*unknown[0])}; its layers {span(list(space.sizes))} have "
            f"{max(space.sizes.values())}, counted from 0"
        )
    return curve_of(trial, rankings, ks, n_random)
