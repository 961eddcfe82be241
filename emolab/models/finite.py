"""The one gate for numbers that a model computes: what is not finite is said at once, with its precision and layer.

>>> from emolab.models.finite import need_finite
>>> need_finite(model, torch.tensor([1.0, float("nan")]), "the logits")        # doctest: +SKIP
NumberError: the logits of 'smollm2' are not finite in float32; ...
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from emolab.base.errors import NumberError
from emolab.models.hooks import at_sites, forward
from emolab.models.model import Model
from emolab.models.prompts import encode


def need_finite(model: Model, values: Any, what: str, *, prompt: str | None = None) -> None:
    """Raise NumberError where a number of `values`, an array, a tensor or several of them, is infinite or none.

    prompt: a complete prompt that they were computed from; read once more without steering, it tells the layer from
    which on numbers are not finite, or that steering alone makes them so.
    """
    several = values if isinstance(values, list | tuple) else [values]
    tensors = [x if isinstance(x, torch.Tensor) else torch.as_tensor(x, device="cpu") for x in several]
    if not all(bool(x.isfinite().all()) for x in tensors):
        raise not_finite(model, what, prompt=prompt)


def not_finite(
    model: Model, what: str, *, where: str = "", steered: bool = False, prompt: str | None = None
) -> NumberError:
    """The error that says so: what, where, in which precision, and what to do."""
    dtype = str(model.dtype).removeprefix("torch.")
    if prompt is not None:
        layer = _first_layer(model, prompt)
        steered = layer is None
        where = "" if layer is None else f" (from layer {layer} on)" if layer < model.n_layers else " (activations are)"
    advice = "its weights are damaged, or a hook changes them: load it again, without"
    if steered:
        advice = "use a smaller dose" + (", or load the model in bfloat16 or float32" if dtype == "float16" else "")
    elif dtype == "float16":
        advice = "load it with dtype='bfloat16' or 'float32', which hold larger numbers"
    return NumberError(f"{what} of {model.name!r} are not finite{where} in {dtype}; {advice}")


def _first_layer(model: Model, prompt: str) -> int | None:
    """The first layer behind which numbers are not finite; for the logits alone, one more than the last; else None."""
    finite: dict[int, bool] = {}

    def look(layer: int, x: torch.Tensor) -> None:
        finite[layer] = bool(x.isfinite().all())

    reads = [(("resid", layer), partial(look, layer)) for layer in range(model.n_layers)]
    with torch.inference_mode(), at_sites(model, reads) as runner:
        finite[model.n_layers] = bool(forward(model, runner, encode(model, [prompt]), 1).isfinite().all())
    return next((layer for layer, fine in sorted(finite.items()) if not fine), None)
