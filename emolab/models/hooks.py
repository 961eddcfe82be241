"""The one seam to a model: functions at its sites, on the plain twin or on TransformerLens' bridge, and its logits.

>>> from emolab.models.hooks import at_sites, forward
>>> from emolab.models.prompts import encode, render_prompts
>>> batch, seen = encode(model, render_prompts(model, ["Tell me about the park."])), []
>>> with at_sites(model, [(("resid", 3), seen.append)]) as runner:
...     logits = forward(model, runner, batch, keep=1)
>>> len(seen[0].shape)                                                            # [row, token, d_model]
3
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError
from emolab.models.model import Model
from emolab.models.prompts import Batch
from emolab.models.sites import bridge_has_hooks, hf_modules, site_hooks, site_layers

# What output projections hand on: behind `head` or `neuron`, before any norm.
PROJECTIONS = {"head": "projection", "neuron": "mlp projection"}
_BEFORE = {projection: site for site, projection in PROJECTIONS.items()}
Place = tuple[str, int]
Function = Callable[[Tensor], Tensor | None]


@contextlib.contextmanager
def at_sites(model: Model, functions: Iterable[tuple[Place, Function]], *, plain: bool | None = None) -> Iterator[Any]:
    """Inside, each function is given the activation at its (site, layer) in every pass; yields the model to run.

    What it returns takes the activation's place; None leaves it. Shapes: [row, token, d_model], of heads [row, token,
    head, d_head], of neurons [row, token, neuron]. plain: on `model.hf`, or else on the bridge; default as
    `runs_plain` says. Takes off exactly these functions, whatever happens.
    """
    functions = list(functions)
    if plain is None:
        plain = runs_plain(model, {site for (site, _), _ in functions})
    runner = model.hf if plain else model.bridge.original_model
    rows = _Rows()
    by_row = [(place, rows.apart(function, place)) for place, function in functions]
    with contextlib.ExitStack() as stack:
        if functions:
            embedding = runner.get_input_embeddings()
            stack.callback(embedding.register_forward_pre_hook(rows.count, with_kwargs=True).remove)
        if plain:
            for (site, layer), function in by_row:
                stack.callback(_on_module(model, site, layer, function).remove)
        else:
            # TransformerLens passes its second argument by this name.
            pairs = [(_point(model, *place), lambda x, hook, f=function: f(x)) for place, function in by_row]
            stack.enter_context(model.bridge.hooks(fwd_hooks=pairs))
        yield runner


def runs_plain(model: Model, sites: Iterable[str]) -> bool:
    """Whether the plain model can stand for the bridge: it has these sites' points, and nobody hooked the bridge."""
    if model.hf is model.bridge.original_model or bridge_has_hooks(model):
        return False
    sites = {_BEFORE.get(site, site) for site in sites}
    return all(hf_modules(model, site, site_layers(model, site)) for site in sites)


class _Rows:
    """How many rows the pass that runs now has, for modules that hand on all tokens in one line.

    Experts do (Llama 4), and OPT's MLP: [row * token, d_model].
    """

    def __init__(self) -> None:
        self.n = 0  # not known: no ids have been read

    def count(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        self.n = len(args[0] if args else next(iter(kwargs.values())))

    def apart(self, function: Function, place: Place) -> Function:
        """The function, given [row, token, ...] in any case. EmolabError where the activation has another shape."""
        ndim = 4 if place[0] == "head" else 3

        def run(x: Tensor) -> Tensor | None:
            if x.ndim == ndim:
                return function(x)
            if x.ndim != ndim - 1 or not self.n or len(x) % self.n:
                raise EmolabError(
                    f"the activation at {place[0]} of layer {place[1]} has shape {list(x.shape)}, expected "
                    f"[row, token, {'head, d_head' if ndim == 4 else 'd_model'}]; this architecture hands on something "
                    "else there: choose another site"
                )
            changed = function(x.unflatten(0, (self.n, -1)))
            return None if changed is None else changed.flatten(0, 1)

        return run


def _point(model: Model, site: str, layer: int) -> str:
    name = site_hooks(model, _BEFORE.get(site, site), [layer])[0]
    return name.removesuffix("hook_in") + "hook_out" if site in _BEFORE else name


def _on_module(model: Model, site: str, layer: int, function: Function) -> Any:
    """The function on a module of the plain model; the handle that takes it off."""
    modules = hf_modules(model, _BEFORE.get(site, site), [layer])
    if modules is None:
        raise EmolabError(f"{model.name!r} has no plain module for site {site!r} at layer {layer}; run the bridge")
    [(module, side)] = modules

    def before(module: Any, args: tuple) -> tuple | None:
        x = args[0].unflatten(-1, (model.n_heads, -1)) if site == "head" else args[0]
        changed = function(x)
        return None if changed is None else (changed.flatten(-2) if site == "head" else changed, *args[1:])

    def behind(module: Any, args: tuple, output: Any) -> Any:
        if isinstance(output, Tensor):
            return function(output)
        if not isinstance(output, tuple):
            raise EmolabError(
                f"{type(module).__name__} of {model.name!r} hands on a {type(output).__name__} at site {site!r}, "
                "expected a tensor; this architecture cannot be measured or steered"
            )
        changed = function(output[0])
        return None if changed is None else (changed, *output[1:])

    if site not in _BEFORE and side == "input":
        return module.register_forward_pre_hook(before)
    return module.register_forward_hook(behind)


def forward(model: Model, runner: Any, batch: Batch, keep: int) -> Float[Tensor, "row token vocab"]:
    """Logits of the last `keep` tokens, from the plain model (runner is `model.hf`) or else through the bridge."""
    mask = batch.attention_mask
    if runner is not model.hf or model.hf is model.bridge.original_model:
        return model.bridge(batch.input_ids, attention_mask=mask, logits_to_keep=keep, use_cache=False)[:, -keep:]
    return runner(input_ids=batch.input_ids, use_cache=False, **plain_options(runner, mask, keep)).logits[:, -keep:]


def plain_options(runner: Any, mask: Tensor, keep: int) -> dict[str, Any]:
    """The mask, and what else a plain model takes: positions that leave padding out, only the last `keep` logits."""
    options: dict[str, Any] = {"attention_mask": mask}
    accepted = inspect.signature(runner.forward).parameters
    if "position_ids" in accepted:  # models with absolute positions do not work them out from the mask by themselves
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = keep
    return options
