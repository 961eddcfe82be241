"""Attention against MLP: how much of an emotion's vector each sublayer writes, and what its shift causes, by layer."""

from __future__ import annotations

import numpy as np
import pandas as pd

from emolab.base.errors import need_number
from emolab.base.stats import bh
from emolab.base.tables import span
from emolab.heads.effects import ratio
from emolab.heads.patching import HeadTest, setup
from emolab.models.model import Model
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
        responses: as of `emolab.head_effects`.
        test: as there. "ablate": in the instructed run the sublayers of a band lose their emotional shift, which is
            their vector, from the last prompt token on; "steer": in the neutral run they get it.
        bands: layers are tested together in so many bands of neighbours, of equal size as far as they can be; default
            6, or as many as there are layers, each then by itself.

    Returns:
        One row per band, site and emotion, and with `layers` "all" for the sublayers of the whole model: `layers`
        ("0-4"), `site`; `written`, the share of the last layer's residual vector that they write straight into it, and
        `random`: 95 % of random directions of their lengths write less than this, up or down; `effect, lo, hi, gap,
        share, random_direction, p, q, n` as of `emolab.head_effects`. What all attention and all MLPs write sums to 1,
        but for what the embedding of the answers' words brings.

    Raises:
        EmolabError: vectors without these sites, test "patch", fewer than one band or more than layers, and as
            `emolab.head_effects`.
    """
    bands = min(6, model.n_layers) if bands is None else bands
    need_number("bands", bands, 1, model.n_layers, whole=True)
    space = ShiftSpace(model, vectors, SUBLAYERS)
    last = vectors.get("resid", layer=-1).double().numpy()
    trial = setup(space, responses, test, seed, ops=("ablate", "steer"))
    groups = [band.tolist() for band in np.array_split(np.arange(model.n_layers), bands)]
    groups += [list(range(model.n_layers))] if bands > 1 else []
    cells = [(layers, place) for layers in groups for place in range(len(SUBLAYERS))]
    changed = [([(layer, site) for layer in layers], random) for random in (False, True) for layers, site in cells]
    values = trial.values(dict.fromkeys(vectors.emotions, changed))
    way = (values[..., 1] - values[..., 0]).mean(1)
    effect, control = np.split((values[..., 2:] - values[..., :1]).swapaxes(0, 1), 2, axis=-1)  # [query, emotion, cell]
    lo, hi = trial.interval(effect)
    p = trial.p(effect - control)

    toward = -1 if trial.test.op == "ablate" else 1
    rows = []
    for i, (layers, place) in enumerate(cells):
        for e, emotion in enumerate(vectors.emotions):
            written = vectors.get(SUBLAYERS[place], emotion=emotion).double().numpy()[layers]
            size = np.linalg.norm(last[e])
            rows.append(
                {
                    "layers": "all" if len(layers) == model.n_layers else span(layers),
                    "site": SUBLAYERS[place],
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
                }
            )
    table = pd.DataFrame(rows).assign(q=lambda t: bh(t["p"]), n=len(trial.queries))
    return trial.noted(table, {"bands": bands})
