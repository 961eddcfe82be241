"""One text behind one prompt, read many times, each time with other changes: what they share is read once.

Changes begin at the last token of the prompt, so that what stands before it is the same in every run: its keys
and values are read once. Below the lowest changed layer, too, all runs are the same: they start from what that layer
was given. Both together leave about a third of the work.

>>> from emolab.heads.rereading import Reading
>>> reading = Reading(model, "Tell me about the park.", "It was quiet.")
>>> logits = reading.logits(edits, rows=4)                             # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from emolab.models.hooks import Place, forward, runs_plain
from emolab.models.model import Model
from emolab.models.prompts import encode
from emolab.models.sharing import first, read_on
from emolab.models.sites import hf_modules, site_layers
from emolab.steering.edits import LayerEdit, hooked
from emolab.steering.positions import PositionMask

# How far log-probabilities of a reading may be off those of one whole pass; more, and whole passes are what is done.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}


class WholePasses:
    """Every run is one pass over prompt and text: of any model, and for a run alone.

    n: positions that are read, one for each token of the text: that before it. start: the first of them, the prompt's
    last token. positions: where these stand in z as an edit is given it; edited: how many of z's positions an edit
    changes.
    """

    def __init__(self, model: Model, prompt: str, text: str) -> None:
        self.model, self.prompt, self.text = model, prompt, text
        self.batch = encode(model, [prompt], [text])
        self.n = int(self.batch.response_mask.sum())
        self.start = self.batch.input_ids.shape[1] - self.n - 1
        self.positions = slice(self.start, self.start + self.n)
        self.edited = self.n + 1

    def mask(self) -> PositionMask:
        return PositionMask([slice(self.start, None)])

    def logits(
        self, edits: Mapping[Place, LayerEdit], rows: int = 1, start: int | None = None
    ) -> Float[Tensor, "row token vocab"]:
        """Of `rows` runs with these edits by place, in float32; with gradients where these are on."""
        batch = encode(self.model, [self.prompt] * rows, [self.text] * rows)
        with hooked(self.model, edits) as runner:
            return forward(self.model, runner, batch, self.n + 1)[:, :-1].float()


class Reading(WholePasses):
    """The same from the last token of the prompt on, on the plain model; what runs share is read once."""

    def __init__(self, model: Model, prompt: str, text: str) -> None:
        super().__init__(model, prompt, text)
        batch = self.batch
        self.edited, self.positions = self.n, slice(None)  # the last token is not read: what it makes is not asked
        self.batch, self.targets = first(batch, 1, batch.input_ids.shape[1] - 1), batch.input_ids[:, self.start + 1 :]
        self.past = DynamicCache(config=model.hf.config.get_text_config(decoder=True))
        if self.start:
            with torch.no_grad():
                read_on(model.hf, first(batch, 1, self.start), self.past)
        self.outputs: list[Any] = []  # of each block but the last, in the run without change

    def mask(self) -> PositionMask:
        return PositionMask(["all"])

    def logits(
        self, edits: Mapping[Place, LayerEdit], rows: int = 1, start: int | None = None
    ) -> Float[Tensor, "row token vocab"]:
        """As of `WholePasses`. start: the first layer that runs; default the lowest edited one."""
        start = min((layer for _, layer in edits), default=0) if start is None else start
        if start and not self.outputs:
            self._read_outputs()
        blocks = [module for module, _ in hf_modules(self.model, "resid") or ()]
        with _skipped(blocks[:start], self.outputs, rows), hooked(self.model, edits) as runner:
            return self._run(runner, rows)

    def _run(self, runner: Any, rows: int) -> Tensor:
        past = copy.deepcopy(self.past)
        if self.start and rows > 1:
            past.batch_repeat_interleave(rows)
        ids, mask = (tensor.expand(rows, -1) for tensor in (self.batch.input_ids, self.batch.attention_mask))
        batch = replace(self.batch, input_ids=ids, attention_mask=mask)
        return read_on(runner, batch, past, self.n).logits[:, -self.n :].float()

    def _read_outputs(self) -> None:
        outputs: list[Any] = []
        with contextlib.ExitStack() as stack, torch.no_grad():
            for module, _ in (hf_modules(self.model, "resid") or ())[:-1]:
                hook = module.register_forward_hook(lambda module, args, output: outputs.append(output))
                stack.callback(hook.remove)
            self._run(self.model.hf, 1)
        self.outputs = outputs


@contextlib.contextmanager
def _skipped(blocks: list[nn.Module], outputs: list[Any], rows: int) -> Iterator[None]:
    """Inside, these blocks hand on what they gave without change, for as many rows, and compute nothing."""
    with contextlib.ExitStack() as stack:
        for block, output in zip(blocks, outputs, strict=False):
            first = output[0] if isinstance(output, tuple) else output
            first = first.expand(rows, *first.shape[1:])
            stack.callback(_restore, block, vars(block).get("forward"))
            block.forward = _gives((first, *output[1:]) if isinstance(output, tuple) else first)
        yield


def _gives(output: Any) -> Any:
    return lambda *args, **kwargs: output


def _restore(block: nn.Module, forward: Any) -> None:
    if forward is None:
        del block.forward
    else:  # accelerate's, say
        block.forward = forward


def rereads(model: Model, prompt: str, text: str, sites: Sequence[str] = ("head",)) -> bool:
    """Whether a model's texts can be read in this way, changed at these sites: it is tried on one, beside a whole pass.

    Not where the bridge has to run, or where the model remembers in another way than by keys and values of each layer.
    """
    config = model.hf.config.get_text_config(decoder=True)
    if len(site_layers(model, "head")) < model.n_layers or not runs_plain(model, {*sites, "resid"}):
        return False
    if not model.hf._supports_default_dynamic_cache():
        return False
    if getattr(config, "num_kv_shared_layers", 0):  # a layer that is left out leaves others without keys
        return False
    if {type(layer) for layer in DynamicCache(config=config).layers} - {DynamicLayer, DynamicSlidingWindowLayer}:
        return False
    with torch.inference_mode():
        reading = Reading(model, prompt, text)
        whole = WholePasses(model, prompt, text).logits({}).log_softmax(-1)
        ours = reading.logits({}, 2, start=model.n_layers // 2)[1:].log_softmax(-1)
    off = (ours - whole).gather(-1, reading.targets[..., None]).abs().max()
    return off.item() < TOLERANCE.get(model.dtype, 0.1)
