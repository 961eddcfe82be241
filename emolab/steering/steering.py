"""Steering: add emotion vectors to a model's activations, remove them, or hold them at a value.

Every edit, of every row, is one affine map of the activation x at one layer:

    x  ->  x + b + (x A) B          b [d_model], A [d_model, k], B [k, d_model]

    add      b = sum of the doses times their vectors; A and B are empty
    ablate   A spans the vectors, B = -dose A^T
    clamp    A holds their unit directions, B = -pinv(A), b moves the components to their target

so rows with different steering share one batch, and the same lines serve TransformerLens hooks and module hooks.

>>> from emolab import Steering, steered
>>> with steered(model, Steering(vectors, {"joy": 1.5})):
...     logits = model(tokens, attention_mask=mask)        # steered
>>> logits = model(tokens, attention_mask=mask)            # as before
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError, MismatchError, need_model, need_number, need_vectors, shown
from emolab.models.model import Model
from emolab.models.sites import SITES, site_hooks, site_layers
from emolab.steering.edits import Edit, Window, hooked

if TYPE_CHECKING:
    from emolab.vectors.vectors import EmotionVectors

CHOICES = {
    "site": SITES,
    "op": ("add", "ablate", "clamp"),
    "unit": ("vector", "residual", "breaking"),
    "part": ("whole", "specific", "shared"),
}


@dataclass(frozen=True, eq=False)
class Steering:
    """What to do to a model's activations: which vectors, how much, where.

    >>> Steering(vectors, {"joy": 1.5, "fear": -0.5})                                    # at every layer's end
    >>> Steering(vectors, {"joy": 0.1}, site="attn", layers=[2, 3], unit="residual")     # a tenth of resid's norm
    >>> Steering(vectors, {"joy": 1.0}, op="ablate", positions="all")                    # no joy anywhere
    >>> Steering(vectors, {"joy": 2.0}, site="head", heads={3: [0, 2]})                  # two heads' own vectors
    >>> Steering(vectors, {"joy": 3.0}, fade=8)                                          # half of it 8 tokens later

    doses      {emotion: alpha}. With op "add" alpha multiplies the vector, and with "clamp" it is the wanted component
               along it; `unit` says what alpha counts. With "ablate" the share of the projection on the vectors' span
               to remove, 1 for all of it, the same for every emotion.
    unit       "vector": the vector itself. "residual": the median norm of the residual stream at that layer.
               "breaking": the alpha at which text breaks in this setting, found by `find_breaking` and kept with the
               vectors; 1 breaks it, so that settings, emotions and models can be compared at equal alphas.
    site       resid, attn, mlp (see `site_hooks`), or head: the sum of the chosen heads' vectors, at the attention
               output.
    layers     "all", "late" (the second half of the layers) or a list of layer numbers.
    positions  "generated": the last prompt token and all after it (in a plain forward call: its last position); "all";
               or a slice over a row's own tokens, 0 the first one, padding not counted, negative ends counted from the
               end of the prompt (in a plain forward call: over the positions of the given tensor).
    part       "whole" vectors; "specific", what is left of them without their mean over emotions; "shared", that mean:
               {"shared": dose}.
    heads      only with site "head": {layer: [heads]}; None is every head.
    fade       half-life in generated tokens, only with positions "generated": the edit is times 0.5**(t / fade) at the
               t-th of them, 1 at the last prompt token (t = 0); None or infinite does not fade. With op "clamp" this is
               the share of the way to the target. Works in `generate` and `token_logprobs`, which know what t is.

    op "clamp" with several emotions sets all their components at once; where the vectors are linearly dependent, by
    least squares. Raises EmolabError for whatever is not among these, and for a dose that is no finite number. Source
    of the method: arXiv 2502.04075.
    """

    vectors: EmotionVectors
    doses: dict[str, float]
    site: str = "resid"
    layers: str | Sequence[int] = "all"
    positions: str | slice = "generated"
    op: str = "add"
    unit: str = "vector"
    part: str = "whole"
    heads: dict[int, list[int]] | None = None
    fade: float | None = None
    _layers: ClassVar[list[int]]  # the layers as whole numbers: of each steering, but no field of the dataclass

    def __post_init__(self) -> None:
        need_vectors(self.vectors)
        for field, choices in CHOICES.items():
            _one_of(field, getattr(self, field), choices)
        if self.site not in self.vectors.data:
            raise EmolabError(
                f"these vectors hold no site {self.site!r}, only {', '.join(self.vectors.data)}; extract it too"
            )
        if not isinstance(self.doses, dict) or not self.doses:
            raise EmolabError(f"doses are {self.doses!r}; expected at least one {{emotion: number}}")
        if self.part == "specific" and len(self.vectors.emotions) < 2:
            raise EmolabError('part "specific" is what tells emotions apart, and these vectors hold only one')
        if self.unit == "residual" and not (torch.as_tensor(self.vectors.resid_norm) > 0).all():
            raise EmolabError('these vectors lack the norm of the residual stream; use unit="vector"')
        for emotion, value in self.doses.items():
            _one_of("emotion", emotion, self._emotions)
            need_number(f"the dose of {emotion!r}", value)
        if self.op == "ablate" and (self.unit != "vector" or len(set(self.doses.values())) > 1):
            raise EmolabError('op "ablate" takes one share for all its emotions (1 removes all), unit "vector"')
        if isinstance(self.positions, slice):
            ends = (self.positions.start, self.positions.stop, self.positions.step)
            if not all(x is None or isinstance(x, int) for x in ends) or (ends[2] is not None and ends[2] < 1):
                raise EmolabError(f"positions are {self.positions}; expected whole numbers and a step of at least 1")
            if ends[1] is not None and (ends[0] or 0) >= ends[1] and ((ends[0] or 0) < 0) == (ends[1] < 0):
                raise EmolabError(f"positions {self.positions} hold no position; expected start before stop")
        else:
            _one_of("positions", self.positions, ("generated", "all"), " or a slice")
        if self.heads is not None and self.site != "head":
            raise EmolabError(f'heads= goes with site="head", not with site={self.site!r}')
        if self.fade is not None:
            if isinstance(self.fade, bool) or not isinstance(self.fade, int | float | np.number) or not self.fade > 0:
                raise EmolabError(f"fade is {self.fade!r}; expected a half-life in tokens above 0, or None")
            if self.positions != "generated":
                raise EmolabError(f'fade= goes with positions="generated", not with positions={self.positions!r}')
        object.__setattr__(self, "_layers", self._check_layers())
        self.in_vectors()  # with unit "breaking" an unknown setting is refused here, not in the middle of a run

    @property
    def _emotions(self) -> tuple[str, ...]:
        return ("shared",) if self.part == "shared" else tuple(self.vectors.emotions)

    def _check_layers(self) -> list[int]:
        shape = self.vectors.data[self.site].shape
        heads, kinds = self.heads, list | tuple | range | np.ndarray
        if heads is not None and not (
            isinstance(heads, dict) and heads and all(isinstance(x, kinds) and len(x) for x in heads.values())
        ):
            raise EmolabError(f"heads are {shown(heads)}; expected {{layer: [heads]}}, or None for every head")
        everything = list(range(shape[1])) if heads is None else list(heads)
        layers = self.layers
        if isinstance(layers, str):
            named = {"all": everything, "late": list(range(shape[1] // 2, shape[1]))}
            layers = named.get(layers, layers)
        if isinstance(layers, str) or not hasattr(layers, "__iter__"):
            raise EmolabError(f'layers is {layers!r}; expected "all", "late" or a list of layer numbers')
        layers = [_number("layer", x, shape[1]) for x in layers]
        if not layers:
            raise EmolabError('layers is empty; expected "all" or at least one layer number')
        for layer, heads in (self.heads or {}).items():
            _number("layer", layer, shape[1])
            for head in heads:
                _number("head", head, shape[2])
        bare = [layer for layer in layers if self.heads is not None and layer not in self.heads]
        if bare:
            raise EmolabError(f"layer {bare[0]} is to be steered, and heads names no head of it; name one")
        return layers

    @property
    def setting(self) -> str:
        """Site, layers, part, op and positions (and heads) in one line: what a breaking alpha belongs to.

        >>> Steering(vectors, {"joy": 1.0}, site="attn", layers="late").setting
        'site=attn layers=15-29 part=whole op=add positions=generated'
        """
        first, last = min(self._layers), max(self._layers)
        span = sorted(self._layers) == list(range(first, last + 1))
        layers = f"{first}-{last}" if span else ",".join(map(str, sorted(self._layers)))
        heads = "" if self.heads is None else f" heads={sorted((k, sorted(v)) for k, v in self.heads.items())}"
        return f"site={self.site} layers={layers} part={self.part} op={self.op} positions={self.positions}{heads}"

    def in_vectors(self) -> dict[str, float]:
        """The doses as multiples of the vector (of the residual's norm with unit "residual"): breaking alphas resolved.

        Raises EmolabError with unit "breaking" where it was not found for this setting and emotion.
        """
        if self.unit != "breaking":
            return {emotion: float(alpha) for emotion, alpha in self.doses.items()}
        known = (self.vectors.meta or {}).get("breaking", {}).get(self.setting, {})
        lacking = [emotion for emotion in self.doses if emotion not in known]
        if lacking:
            raise EmolabError(
                f"these vectors do not know where text breaks for {lacking[0]} at {self.setting}; find it first: "
                "vectors = emolab.find_breaking(model, steering, queries)"
            )
        return {emotion: float(alpha) * known[emotion] for emotion, alpha in self.doses.items()}

    def directions(self) -> Float[Tensor, "emotion layer d_model"]:
        """The vectors in use, one for each emotion in `doses`, in float64."""
        data = self.vectors.data[self.site].double()
        shared = data.mean(0, keepdim=True)
        data = {"whole": data, "specific": data - shared, "shared": shared}[self.part]
        data = data[[self._emotions.index(e) for e in self.doses]]
        if self.site == "head":
            if self.heads is not None:
                chosen = torch.zeros(data.shape[1:3], dtype=data.dtype)
                for layer, heads in self.heads.items():
                    chosen[layer, list(heads)] = 1
                data = data * chosen[..., None]
            data = data.sum(2)
        return data

    def table(self, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Float[Tensor, "layer d_model"]:
        """What op "add" adds at each layer; zero where nothing is."""
        if self.op != "add":
            raise EmolabError(
                f'op {self.op!r} depends on the activation and adds no fixed vector; only "add" has a table'
            )
        return self.affine()[0].to(device, dtype)

    def affine(self) -> tuple[Tensor, Tensor, Tensor]:
        """b [layer, d_model], A [layer, d_model, k] and B [layer, k, d_model] of the formula; zero at other layers."""
        v = self.directions()
        on = torch.zeros(v.shape[1], dtype=v.dtype)
        on[self._layers] = 1
        doses = torch.tensor(list(self.in_vectors().values()), dtype=v.dtype)
        norm = v.norm(dim=-1)
        if (self.op != "add" or self.unit == "residual") and not norm[:, self._layers].all():
            raise EmolabError(
                f'a vector is zero at a chosen layer, without direction; op "{self.op}" and unit "{self.unit}" need it'
            )
        unit = v / norm.clamp_min(torch.finfo(v.dtype).tiny)[..., None]
        residual = self.unit == "residual"
        scale = torch.as_tensor(self.vectors.resid_norm).to(v).expand_as(norm) if residual else norm
        # Without the residual's norm the vector itself is multiplied: norm times unit would not give back its bits.
        target = unit * (doses[:, None] * scale)[..., None] if residual else v * doses[:, None, None]
        rows = unit.transpose(0, 1)  # [layer, emotion, d_model]
        none = v.new_zeros(v.shape[1], v.shape[2], 0)
        if self.op == "add":
            b, a, back = target.sum(0), none, none.transpose(1, 2)
        elif self.op == "ablate":
            _, size, basis = torch.linalg.svd(rows, full_matrices=False)
            basis = basis * (size > 1e-6 * size[:, :1])[..., None]
            b, a, back = torch.zeros_like(v[0]), basis.transpose(1, 2), -doses[0] * basis
        else:
            a, inverse = rows.transpose(1, 2), torch.linalg.pinv(rows).transpose(1, 2)
            b, back = torch.einsum("el,led->ld", doses[:, None] * scale, inverse), -inverse
        return b * on[:, None], a, back * on[:, None, None]


def _one_of(field: str, value: Any, choices: Sequence[str], more: str = "") -> None:
    if not isinstance(value, str) or value not in choices:
        raise EmolabError(f"unknown {field} {shown(value)}; expected one of {', '.join(choices)}{more}")


def _number(what: str, value: Any, n: int) -> int:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < n:
        raise EmolabError(f"unknown {what} {value!r}; expected a whole number from 0 to {n - 1}")
    return number


def as_rows(model: Model, steering: Any, allow_mismatch: bool = False) -> list[Steering | None]:
    """One steering for all rows as a list of one, or one per row, checked against the model; empty if all None."""
    need_model(model)
    rows = list(steering) if isinstance(steering, list | tuple) else [steering]
    if not rows:
        raise EmolabError("steering is an empty list; expected a Steering, None, or a list of these, one per row")
    for s in rows:
        if s is not None and not isinstance(s, Steering):
            raise EmolabError(
                f"steering is {type(s).__name__}; expected a Steering, None, or a list of these, one per row"
            )
    for s in {id(s): s for s in rows if s is not None}.values():
        check_vectors(model, s.vectors, allow_mismatch)
        if s.site == "head" and site_hooks(model, "attn", site_layers(model, "attn")[:1])[0].split(".")[2] != "attn":
            raise EmolabError(
                f'{model.name!r} rescales attention before adding it, so heads have no vector there; use site="attn"'
            )
    return rows if any(s is not None for s in rows) else []


def check_vectors(model: Model, vectors: EmotionVectors, allow_mismatch: bool) -> None:
    data, meta = next(iter(vectors.data.values())), vectors.meta or {}
    theirs, ours = (data.shape[1], data.shape[-1]), (model.n_layers, model.d_model)
    mark = meta.get("fingerprint")
    if theirs == ours and (allow_mismatch or mark in (None, "", model.fingerprint)):
        return
    advice = "shapes must agree" if theirs != ours else "allow_mismatch=True uses them all the same"
    raise MismatchError(
        f"these vectors are of another model: {meta.get('model', 'unnamed')!r} ({theirs[0]} layers, d_model "
        f"{theirs[1]}, fingerprint {mark}), and this is {model.name!r} ({ours[0]} layers, d_model {ours[1]}, "
        f"fingerprint {model.fingerprint}); {advice}"
    )


def build_edits(
    model: Model, rows: list[Steering | None], prompts: list[tuple[int, int]] | None = None, cached: bool = False
) -> dict[tuple[str, int], Edit]:
    """Edits by (site, layer), only where there is something to do, on the model's device; see `Window` for the rest."""
    fade = [s.fade or math.inf if s else math.inf for s in rows]
    if prompts is None and not all(map(math.isinf, fade)):
        raise EmolabError(
            "fade counts generated tokens, and a plain forward call does not know them; give this steering to "
            "emolab.generate (or token_logprobs) instead of `steered`"
        )
    window = Window([s.positions if s else "all" for s in rows], prompts, cached, fade)
    maps = {id(s): [t.float() for t in s.affine()] for s in rows if s is not None}
    rank = max((a.shape[2] for _, a, _ in maps.values()), default=0)
    edits = {}
    for site in dict.fromkeys(_hook_site(s) for s in rows if s is not None):
        b = torch.zeros(model.n_layers, len(rows), model.d_model)
        a, back = b.new_zeros(*b.shape, rank), b.new_zeros(*b.shape[:2], rank, model.d_model)
        for i, s in enumerate(rows):
            if s is not None and _hook_site(s) == site:
                bs, as_, backs = maps[id(s)]
                k = as_.shape[2]
                b[:, i], a[:, i, :, :k], back[:, i, :k] = bs, as_, backs
        used = (b.flatten(1).any(1) | back.flatten(1).any(1)).tolist()
        b, a, back = (t.to(model.device) for t in (b, a, back))
        edits |= {(site, i): Edit(b[i], a[i], back[i], window) for i in range(model.n_layers) if used[i]}
    return edits


def _hook_site(steering: Steering) -> str:
    return "attn" if steering.site == "head" else steering.site  # a head's vector lives where heads are summed


@contextlib.contextmanager
def steered(
    model: Model, steering: Steering | list[Steering | None] | None, *, allow_mismatch: bool = False
) -> Iterator[Model]:
    """Inside, every TransformerLens call on the model is steered; outside nothing remains, also after an exception.

    >>> with emolab.steered(model, emolab.Steering(vectors, {"joy": 1.5})) as m:
    ...     logits, cache = m.run_with_cache(tokens, attention_mask=mask)

    A list gives each row of the batch its own steering, None for none. Contexts nest, and `emolab.generate` inside one
    is steered too. allow_mismatch=True takes vectors made on a model with another fingerprint; number of layers and
    d_model must agree even so. Raises EmolabError for vectors of another model, for a list as long as neither 1 nor the
    batch, and on leaving where the model ran but a steered layer did not.
    """
    rows = as_rows(model, steering, allow_mismatch)
    with hooked(model, build_edits(model, rows), plain=False):
        yield model
