"""Attention against MLP: how much of an emotion's vector each sublayer writes, and what its shift causes, by layer.

>>> table = emolab.heads.sublayer_effects(model, vectors, responses)
>>> table[["layers", "site", "emotion", "written", "share", "lo", "hi", "random_direction"]]
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_number
from emolab.base.stats import bh, bootstrap_ci, sign_flip
from emolab.base.tables import noted, span
from emolab.heads.effects import FLIPS, control_seed, ratio
from emolab.heads.patching import HeadTest, setup
from emolab.models.model import Model
from emolab.steering.head_edits import Change
from emolab.steering.shifts import ShiftSpace
from emolab.vectors.vectors import EmotionVectors

SUBLAYERS = ("attn", "mlp")


def sublayer_effects(
    model: Model,
    vectors: EmotionVectors,
    responses: pd.DataFrame,
    *,
    test: HeadTest | str = "ablate",
    bands: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Attention against MLP, by layer: how much of the vector each writes, and how much emotion goes with its shift.

    >>> table = emolab.heads.sublayer_effects(model, vectors, responses)
    >>> emolab.plot.sublayers(table)

    Args:
        vectors: with sites "resid", "attn" and "mlp".
        responses: from `collect_responses` under neutral and the emotions.
        test: what is done and measured (`emolab.HeadTest`). "ablate": in the instructed run the sublayers of a band
            lose their emotional shift, which is their vector, from the last prompt token on; "steer": in the neutral
            run they get it.
        bands: layers are tested together in so many bands of neighbours, of equal size as far as they can be; default
            6, or as many as there are layers, each then by itself.

    Returns:
        One row per band, site and emotion, and with `layers` "all" for the sublayers of the whole model: `layers`
        ("0-4"), `site`; `written`, the share of the last layer's residual vector that they write straight into it, and
        `random`: 95 % of random directions of their lengths write less than this, up or down; `effect` in nats (or
        probability) with its 95 % interval `lo, hi` over queries, those of one situation together; `gap`, the
        instructed less the neutral run; `share`, the effect over that whole way; `random_direction`, the effect of
        random directions of equal norm; `p` of the effect against these (sign flips) and `q` (Benjamini-Hochberg over
        the table); `n` queries. What all attention and all MLPs write sums to 1, but for what the embedding of the
        answers' words brings.

    Raises:
        EmolabError: vectors without these sites, test "patch", fewer than one band or more than layers, and as
            `emolab.head_effects`.
    """
    test = HeadTest(test) if isinstance(test, str) else test
    if test.op == "patch":
        raise EmolabError('sublayers are tested by "ablate" or "steer"; "patch" is a test of heads')
    bands = min(6, model.n_layers) if bands is None else bands
    need_number("bands", bands, 1, model.n_layers, whole=True)
    space = ShiftSpace(model, vectors, SUBLAYERS)
    last = vectors.get("resid", layer=-1).double().numpy()
    measure, pairs = setup(space, responses, test, seed)
    groups = [band.tolist() for band in np.array_split(np.arange(model.n_layers), bands)]
    groups += [list(range(model.n_layers))] if bands > 1 else []
    cells = [(layers, place) for layers in groups for place in range(len(SUBLAYERS))]

    runs = []
    for emotion in vectors.emotions:
        for number, query in enumerate(pairs.queries):
            runs += [pairs.run(query, emotion), pairs.goal(query, emotion)]
            for direction in (None, control_seed(seed, number)):
                for layers, place in cells:
                    where = tuple((layer, place) for layer in layers)
                    runs.append(pairs.run(query, emotion, Change(test.op, emotion, where, test.dose, direction)))
    values = measure(space, runs).reshape(len(vectors.emotions), len(pairs.queries), -1)
    way = (values[..., 1] - values[..., 0]).mean(1)
    effect, control = np.split((values[..., 2:] - values[..., :1]).swapaxes(0, 1), 2, axis=-1)  # [query, emotion, cell]
    _, lo, hi = bootstrap_ci(effect, lambda rows: rows.mean(0), clusters=pairs.situations, seed=seed)
    p = sign_flip(effect - control, clusters=pairs.situations, n=FLIPS, seed=seed)

    toward = -1 if test.op == "ablate" else 1
    rows = []
    for i, (layers, place) in enumerate(cells):
        site = SUBLAYERS[place]
        for e, emotion in enumerate(vectors.emotions):
            written = vectors.get(site, emotion=emotion).double().numpy()[layers]
            size = np.linalg.norm(last[e])
            rows.append(
                {
                    "layers": "all" if len(layers) == model.n_layers else span(layers),
                    "site": site,
                    "emotion": emotion,
                    "written": ratio(written.sum(0) @ last[e], size**2),
                    "random": ratio(1.96 * np.linalg.norm(written), size * np.sqrt(model.d_model)),
                    "effect": effect[:, e, i].mean(),
                    "lo": lo[e, i],
                    "hi": hi[e, i],
                    "gap": toward * way[e],
                    "share": ratio(effect[:, e, i].mean(), way[e]),
                    "random_direction": control[:, e, i].mean(),
                    "p": p[e, i],
                    "q": np.nan,
                    "n": len(pairs.queries),
                }
            )
    table = pd.DataFrame(rows).assign(q=lambda t: bh(t["p"]))
    params = {"test": test.op, "measure": measure.name, "dose": test.dose, "bands": bands}
    return noted(table, model, n=f"{len(pairs.queries)} queries", seed=seed, params=params)
