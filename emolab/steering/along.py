"""How far a model's activations point along vectors, token by token: read where steering would act.

>>> from emolab.models.prompts import encode
>>> layers = need_readable(model, vectors, site="resid", layers=[15])
>>> dots, lengths = read_along(model, vectors, encode(model, ["The park"]), site="resid", layers=layers, n=2)
>>> dots.shape, lengths.shape                                            # [row, token, layer, emotion]
((1, 2, 1, 5), (1, 2, 1))
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from emolab.base.errors import EmolabError
from emolab.models.model import Model
from emolab.models.prompts import Batch
from emolab.models.sharing import read_at_sites
from emolab.steering.steering import Steering, as_rows
from emolab.vectors.vectors import EmotionVectors


def need_readable(model: Model, vectors: EmotionVectors, *, site: str, layers: str | Sequence[int]) -> list[int]:
    """The layers to read, in order; EmolabError for site "head", and as `Steering` for vectors that do not fit."""
    if site == "head":
        raise EmolabError('a token has no single activation at site "head"; use "resid", "attn" or "mlp"')
    # The checks of steering are those that are needed here: site, layers, fingerprint and shapes.
    steering = Steering(vectors, {vectors.emotions[0]: 1.0}, site=site, layers=layers)
    as_rows(model, steering)
    return sorted({*steering.layer_numbers})


def read_along(
    model: Model,
    vectors: EmotionVectors,
    batch: Batch,
    *,
    site: str,
    layers: Sequence[int],
    n: int,
    plain: bool | None = None,
) -> tuple[Float[np.ndarray, "row token layer emotion"], Float[np.ndarray, "row token layer"]]:
    """Dot products of each row's last n activations with the vectors at unit length, and the activations' own lengths.

    float64, from one forward pass; plain: as `emolab.models.at_sites` takes it.
    """
    unit = torch.nn.functional.normalize(vectors.get(site).double(), dim=-1, eps=1e-30)
    dots, lengths = {}, {}

    def take(layer: int):
        def function(x: torch.Tensor) -> None:
            x = x[:, -n:].detach().to("cpu").double()
            dots[layer] = (x.flatten(0, 1) @ unit[:, layer].T).unflatten(0, (len(x), n)).numpy()
            lengths[layer] = x.norm(dim=-1).numpy()

        return function

    reads = [((site, layer), take(layer)) for layer in layers]
    read_at_sites(model, batch, reads, keep=n, plain=plain)
    return np.stack([dots[i] for i in layers], axis=2), np.stack([lengths[i] for i in layers], axis=2)
