"""One forward pass: per row, the mean of every site and layer over the tokens that count, in float64.

The hooks do the sums, and nothing but the means is kept. `vectors.activations` puts batches together. The pass is that
of the plain model, with its own fast attention, as in generation, and without its head: nobody reads the logits. Where
that lacks a site's points, or where the bridge carries hooks, whose effect is then measured, it is the bridge's. Both
compute the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from emolab.base.errors import EmolabError
from emolab.models.hooks import PROJECTIONS, runs_plain
from emolab.models.model import Model
from emolab.models.prompts import encode
from emolab.models.sharing import read_at_sites
from emolab.models.sites import WHOLE, neuron_weight, output_gain, output_norm, output_weight, site_layers

# How far heads, or neurons, may miss their sublayer's output, as a share of it; bfloat16 rounds at 0.4 %.
_HEAD_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}


def attention_kind(model: Model, sites: Iterable[str]) -> str:
    """The attention that computes them: the bridge's is "eager". Kinds differ by rounding, 1 % in bfloat16."""
    return model.hf.config.get_text_config()._attn_implementation if runs_plain(model, {*sites, "resid"}) else "eager"


def batch_means(
    model: Model,
    prompts: list[str],
    texts: list[str],
    counted: Sequence[np.ndarray],
    sites: set[str],
    scratch: dict[torch.device, Tensor],
) -> dict[str, np.ndarray]:
    """One forward pass: {site: [batch, layer, ...]} and `resid_norm` [batch, layer].

    counted: which tokens of each text count, from `token_rule.counted_tokens`. scratch: {} at first; memory for all
    layers and batches, since fresh one for each would cost more than the sums.
    """
    whole = encode(model, prompts, texts)
    exact = torch.float32 if model.device.type == "mps" else torch.float64  # MPS has no float64
    mask = torch.zeros_like(whole.response_mask)
    for row, which in enumerate(counted):
        mask[row, mask.shape[1] - len(which) :] = torch.from_numpy(which)
    size = mask.shape[1] - int(mask.any(0).nonzero()[0])  # of the end of the batch; nothing counts left of it
    mask = mask[:, -size:]
    weight = mask.to(exact) / mask.sum(1, keepdim=True)
    taken: dict[tuple[str, int], Tensor] = {}

    def counting(x: Tensor) -> Tensor:
        """The tokens that count, zero elsewhere."""
        keep = mask.to(x.device).reshape(*mask.shape, *[1] * (x.ndim - 2))
        return torch.where(keep, x[:, -size:], 0).to(exact)

    def mean(x: Tensor) -> Tensor:
        return torch.bmm(weight[:, None].to(x.device), x.flatten(2)).reshape(len(x), *x.shape[2:])

    def everything(x: Tensor) -> Tensor:
        """All tokens, which is faster: weight 0 leaves out those that do not count, unless one is infinite."""
        part = x[:, -size:]
        if part.device not in scratch or scratch[part.device].numel() < part.numel():
            scratch[part.device] = torch.empty(part.numel(), dtype=exact, device=part.device)
        return scratch[part.device][: part.numel()].view(part.shape).copy_(part)

    values_of = everything

    def plain(site: str, layer: int):
        def take(x):
            values = values_of(x)
            taken[site, layer] = mean(values).float()
            if site == "resid":
                taken["resid_norm", layer] = mean(values.norm(dim=-1)[..., None])[:, 0].float()

        return take

    def normed(site: str, layer: int, gain: Tensor):
        """A sublayer's output is normed: out -> out * scale * gain, scale by token. Gives each token's z that scale."""
        current: dict[str, Tensor] = {}

        def take_z(x):
            current["z"] = counting(x)

        def take_raw(x):
            current["raw"] = counting(x) * gain.to(x.device, exact)

        def take_normed(x):
            raw = current.pop("raw")
            scale = (counting(x) * raw).sum(-1) / (raw * raw).sum(-1).clamp_min(torch.finfo(exact).tiny)
            z = current.pop("z")
            taken[site, layer] = mean(z * scale.reshape(*scale.shape, *[1] * (z.ndim - 2))).float()

        return take_z, take_raw, take_normed

    reads = []
    for site in sorted({*sites, "resid"}):
        for layer in site_layers(model, site):
            block = model.bridge.blocks[layer]
            if site in WHOLE and output_norm(block, site) is not None:
                points = (site, layer), (PROJECTIONS[site], layer), (WHOLE[site], layer)
                reads += zip(points, normed(site, layer, output_gain(block, site)), strict=True)
            else:
                reads.append(((site, layer), plain(site, layer)))
    read_at_sites(model, whole, reads)
    if not all(x.isfinite().all() for x in taken.values()):  # not in the hooks: a GPU would wait at each
        values_of = counting
        read_at_sites(model, whole, reads)
    result = {}
    for name in (*sites, "resid_norm"):
        layers = {layer: taken[name, layer].cpu() for layer in range(model.n_layers) if (name, layer) in taken}
        if len(layers) < len(site_layers(model, "resid" if name == "resid_norm" else name)):
            raise EmolabError(f"{model.name} gave no activations at {name}; measure the other sites only")
        widest = max(layers.values(), key=lambda x: x.shape[-1])
        none = torch.zeros_like(widest)  # of a layer without attention (hybrid models)
        # Heads may be of different width (Gemma 4): filled up with zeros.
        padded = [
            torch.nn.functional.pad(x, (0, widest.shape[-1] - x.shape[-1]))
            for x in (layers.get(layer, none) for layer in range(model.n_layers))
        ]
        result[name] = torch.stack(padded, 1).numpy()
    return result


def check_parts(model: Model, site: str, z: np.ndarray, whole: np.ndarray) -> None:
    """Heads (or neurons) must sum to `attn` (`mlp`) up to one constant a layer, the bias: refuses what we misread."""
    dtype = torch.promote_types(model.dtype, torch.float32)
    rows = np.linspace(0, len(z) - 1, min(len(z), 64)).astype(int)  # what is misread is so in every response
    # In torch: NumPy's threads would go on spinning for some milliseconds, and torch's wait for them at every layer.
    some_z, some_whole = torch.from_numpy(z[rows]), torch.from_numpy(whole[rows])
    weight_of = output_weight if site == "head" else neuron_weight
    for layer in site_layers(model, site):
        weight = weight_of(model, layer, dtype)
        expected = some_whole[:, layer]
        parts = some_z[:, layer, ..., : weight.shape[-2]].flatten(1).to(dtype)
        rest = expected - parts @ weight.flatten(0, -2)
        off = ((rest - rest.mean(0)).abs().max() / expected.abs().max().clamp_min(1e-12)).item()
        if off > _HEAD_TOLERANCE.get(model.dtype, 5e-2):
            raise EmolabError(
                f"{site}s of layer {layer} do not add up to the {WHOLE[site]} output of {type(model.hf).__name__} "
                f"(off by {off:.1%}); measure resid, attn or mlp, without {site!r}"
            )
