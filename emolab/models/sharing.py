"""What the rows of a batch begin with in common is read once, and its keys and values are handed to all of them.

Prompts of a chat model share its system turn, texts that are read behind one neutral prompt all of it, and grids of
steerings whole prompts.

>>> batch = encode(model, render_prompts(model, ["Tell me about the park."] * 3), ["It was quiet.", "Nice.", "No."])
>>> batch, past = begin(model, batch)                                              # doctest: +SKIP
>>> logits = read_on(model.hf, batch, past, keep=1)                                # doctest: +SKIP
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from emolab.models.hooks import Function, Place, at_sites, forward, plain_options, runs_plain
from emolab.models.model import Model, contiguous_head
from emolab.models.prompts import Batch, encode
from emolab.models.sites import logit_gap

SHARE_FROM = 8  # tokens from which on reading them once pays
# Share by which logits may be off where padding stands inside a row; more, and it never does. In half precision
# padding on the left changes them by 5 % of their spread, too: that is rounding.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
_TRIED = "The rain fell all day, and they stayed at home, where it was warm and quiet."


def new_cache(model: Model) -> DynamicCache | None:
    """An empty cache whose rows may be taken apart; None where that might not be the same.

    So it is where somebody else's hooks are on the model (they may change rows one by one), or where it remembers in
    another way.
    """
    hooks = (hook for m in model.hf.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    # Those of transformers only look on.
    if any(h is not contiguous_head and not getattr(h, "__module__", "").startswith("transformers.") for h in hooks):
        return None
    takes_cache = "past_key_values" in inspect.signature(model.hf.forward).parameters
    if not takes_cache or not model.hf._supports_default_dynamic_cache():
        return None
    past = DynamicCache(config=model.hf.config.get_text_config(decoder=True))
    return None if {type(x) for x in past.layers} - {DynamicLayer, DynamicSlidingWindowLayer} else past


def pays(n_tokens: int) -> bool:
    """Whether to read so many tokens once, instead of in every row, makes up for the cache."""
    return n_tokens >= SHARE_FROM


def begin(model: Model, batch: Batch, *, keep: int = 1) -> tuple[Batch, DynamicCache] | None:
    """The batch with its padding behind what all prompts begin with, and a cache that holds this for every row.

    Neither the last token of a prompt is read, nor the last `keep` tokens of any row. None where that would not pay,
    or not be the same. Call it before any hook is on the model.
    """
    n = min(_in_common(batch), int(batch.attention_mask.sum(1).min()) - keep)
    past = new_cache(model) if pays(n) else None
    if past is None:
        return None
    if not batch.attention_mask.all():
        if not _may_pad_inside(model, past):
            return None
        batch = _padded_inside(batch, n)
    read_on(model.hf, first(batch, 1, n), past)
    past.batch_select_indices(batch.input_ids.new_zeros(len(batch.input_ids)))
    return batch, past


def read_at_sites(
    model: Model,
    batch: Batch,
    reads: Sequence[tuple[Place, Function]],
    *,
    keep: int = 1,
    plain: bool | None = None,
) -> None:
    """One pass for what these functions at sites see; what `begin` reads beforehand they do not. plain: as `at_sites`.

    A head over 50,000 tokens costs a plain model up to two thirds of a pass, and is left out: nobody reads the logits.
    """
    plain = runs_plain(model, {site for (site, _), _ in reads}) if plain is None else plain
    with torch.inference_mode():
        begun = begin(model, batch, keep=keep) if plain else None
        with at_sites(model, reads, plain=plain) as runner:
            if not plain:
                forward(model, runner, batch, keep=1)
                return
            body = getattr(runner, runner.base_model_prefix, runner)
            if begun is None:
                body(input_ids=batch.input_ids, use_cache=False, **plain_options(body, batch.attention_mask, keep=1))
            else:
                read_on(body, *begun)


def read_on(runner: Any, batch: Batch, past: DynamicCache, keep: int = 1) -> Any:
    """What the model gives for the columns of the batch that its cache does not hold yet; these it holds afterwards."""
    seen = past.get_seq_length()
    options = plain_options(runner, batch.attention_mask, keep)
    if "position_ids" in options:
        options["position_ids"] = options["position_ids"][:, seen:]
    return runner(input_ids=batch.input_ids[:, seen:], use_cache=True, past_key_values=past, **options)


def read_prompts(model: Model, past: DynamicCache, once: Batch, rows: Int[Tensor, " row"]) -> None:
    """Read each different prompt, but for its last token, and hand what the cache holds of it to its rows.

    past: empty, or of `begin`, where all rows begin alike.
    """
    n, width = len(once.input_ids), once.input_ids.shape[1]
    if past.get_seq_length():
        past.batch_select_indices(rows.new_zeros(n))
    if past.get_seq_length() < width - 1:
        read_on(model.hf, first(once, n, width - 1), past)
    past.batch_select_indices(rows)


def first(batch: Batch, rows: int, columns: int) -> Batch:
    """The ids and mask of the first rows and columns: what is read of a batch beforehand."""
    ids, mask = batch.input_ids[:rows, :columns], batch.attention_mask[:rows, :columns]
    return replace(batch, input_ids=ids, attention_mask=mask)


def _in_common(batch: Batch) -> int:
    """How many tokens all rows begin with, within their prompts and without the last one of these."""
    n_prompt = batch.attention_mask.sum(1) - batch.response_mask.sum(1)
    limit = int(n_prompt.min()) - 1
    if len(n_prompt) < 2 or not pays(limit):
        return 0
    leads = batch.input_ids.gather(1, _pads(batch)[:, None] + torch.arange(limit, device=batch.input_ids.device))
    return int((leads == leads[0]).all(0).cumprod(0).sum())


def _pads(batch: Batch) -> Int[Tensor, " row"]:
    return (batch.attention_mask == 0).sum(1)


def _padded_inside(batch: Batch, n: int) -> Batch:
    """The same rows: their first n tokens, then the padding, then the rest."""
    column = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)[None]
    pads = _pads(batch)[:, None]
    behind = torch.where(column < n + pads, column - n, column)
    source = torch.where(column < n, column + pads, behind)
    return replace(
        batch, input_ids=batch.input_ids.gather(1, source), attention_mask=batch.attention_mask.gather(1, source)
    )


def _may_pad_inside(model: Model, past: DynamicCache) -> bool:
    """Whether a row computes the same with padding inside: tried on two rows, once for a model.

    Not where a window slides, which counts padding, nor where positions are not given but counted.
    """
    if model._pads_inside is None:
        model._pads_inside = False
        given = "position_ids" in inspect.signature(model.hf.forward).parameters
        if given and all(type(layer) is DynamicLayer for layer in past.layers):
            model._pads_inside = _same_with_padding(model)
    return model._pads_inside


@torch.inference_mode()
def _same_with_padding(model: Model) -> bool:
    prompts, n = [_TRIED, _TRIED[: _TRIED.index(",")]], 2
    alone = [forward(model, model.hf, encode(model, [prompt]), keep=1)[0, -1] for prompt in prompts]
    batch, past = _padded_inside(encode(model, prompts), n), new_cache(model)
    if past is None:
        return False
    read_on(model.hf, first(batch, 2, n), past)
    together = read_on(model.hf, batch, past).logits[:, -1]
    gaps = [logit_gap(model, ours.float(), own.float())[0] for ours, own in zip(together, alone, strict=True)]
    return max(gaps) < _TOLERANCE.get(model.dtype, 0.1)
