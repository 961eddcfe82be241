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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError, need_model, need_number, need_vectors
from emolab.models.model import Model
from emolab.models.sites import site_hooks, site_layers
from emolab.steering.edits import Edit, Window, hooked
from emolab.steering.settings import FIELDS, Setting, layer_numbers, mixtures, need_one_of, need_place
from emolab.vectors.vectors import EmotionVectors, check_vectors, match_norm


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
    site: str = Setting.site
    layers: str | Sequence[int] = Setting.layers
    positions: str | slice = Setting.positions
    op: str = Setting.op
    unit: str = Setting.unit
    part: str = Setting.part
    heads: dict[int, list[int]] | None = Setting.heads
    fade: float | None = Setting.fade
    setting: Setting = field(init=False, repr=False)
    layer_numbers: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        need_vectors(self.vectors)
        object.__setattr__(self, "setting", Setting(**{name: getattr(self, name) for name in FIELDS}))
        if self.site not in self.vectors.data:
            raise EmolabError(
                f"these vectors hold no site {self.site!r}, only {', '.join(self.vectors.data)}; extract it too"
            )
        if not isinstance(self.doses, dict) or not self.doses:
            raise EmolabError(f"doses are {self.doses!r}; expected at least one {{emotion: number}}")
        if self.part == "specific" and len(self.vectors.emotions) < 2:
            raise EmolabError('part "specific" is what tells emotions apart, and these vectors hold only one')
        if self.unit == "residual" and not (self.vectors.resid_norm > 0).all():
            raise EmolabError('these vectors lack the norm of the residual stream; use unit="vector"')
        known = [*self.vectors.emotions, *(["shared"] if self.part == "shared" else [])]
        for emotion, value in self.doses.items():
            need_one_of("emotion", emotion, known)
            need_number(f"the dose of {emotion!r}", value)
        if self.op == "ablate" and (self.unit != "vector" or len(set(self.doses.values())) > 1):
            raise EmolabError('op "ablate" takes one share for all its emotions (1 removes all), unit "vector"')
        layers = layer_numbers(self.setting, self.vectors.n_layers)
        object.__setattr__(self, "layer_numbers", layers)
        for layer, heads in (self.heads or {}).items():
            need_place("layer", layer, self.vectors.n_layers)
            for head in heads:
                need_place("head", head, self.vectors.data["head"].shape[2])
        bare = [layer for layer in layers if self.heads is not None and layer not in self.heads]
        if bare:
            raise EmolabError(f"layer {bare[0]} is to be steered, and heads names no head of it; name one")
        self.in_vectors()  # with unit "breaking" an unknown setting is refused here, not in the middle of a run

    @property
    def breaking_key(self) -> str:
        """Site, layers, part, op and positions (and heads) in one line: what a breaking alpha belongs to.

        >>> Steering(vectors, {"joy": 1.0}, site="attn", layers="late").breaking_key
        'site=attn layers=15-29 part=whole op=add positions=generated'
        """
        layers = sorted(self.layer_numbers)
        span = layers == list(range(layers[0], layers[-1] + 1))
        named = f"{layers[0]}-{layers[-1]}" if span else ",".join(map(str, layers))
        heads = "" if self.heads is None else f" heads={sorted((k, sorted(v)) for k, v in self.heads.items())}"
        return f"site={self.site} layers={named} part={self.part} op={self.op} positions={self.positions}{heads}"

    def in_vectors(self) -> dict[str, float]:
        """The doses as multiples of the vector (of the residual's norm with unit "residual"): breaking alphas resolved.

        Part "shared" is the same for every emotion: {"shared": the sum of the doses}. Raises EmolabError with unit
        "breaking" where it was not found for this setting and emotion.
        """
        doses = {emotion: float(alpha) for emotion, alpha in self.doses.items()}
        if self.part == "shared":
            doses = {"shared": sum(doses.values())}
        if self.unit != "breaking":
            return doses
        known = self.vectors.meta.get("breaking", {}).get(self.breaking_key, {})
        lacking = [emotion for emotion in doses if emotion not in known]
        if lacking:
            raise EmolabError(
                f"these vectors do not know where text breaks for {lacking[0]} at {self.breaking_key}; find it first: "
                "vectors = emolab.find_breaking(model, steering, queries)"
            )
        return {emotion: alpha * known[emotion] for emotion, alpha in doses.items()}

    def directions(self) -> Float[Tensor, "emotion layer d_model"]:
        """The vectors in use, one for each emotion in `in_vectors`, in float64."""
        data = self.vectors.data[self.site].double()
        shared = data.mean(0, keepdim=True)
        if self.part == "shared":
            data = shared
        else:
            data = data - shared if self.part == "specific" else data
            data = data[[self.vectors.emotions.index(emotion) for emotion in self.doses]]
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
        on[self.layer_numbers] = 1
        doses = torch.tensor(list(self.in_vectors().values()), dtype=v.dtype)
        norm = v.norm(dim=-1)
        if (self.op != "add" or self.unit == "residual") and not norm[:, self.layer_numbers].all():
            raise EmolabError(
                f'a vector is zero at a chosen layer, without direction; op "{self.op}" and unit "{self.unit}" need it'
            )
        unit = v / norm.clamp_min(torch.finfo(v.dtype).tiny)[..., None]
        residual = self.unit == "residual"
        scale = self.vectors.resid_norm.to(v).expand_as(norm) if residual else norm
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


def at(
    vectors: EmotionVectors,
    setting: Setting | Sequence[Setting] = Setting(),
    emotions: Sequence[str | Mapping[str, float]] | None = None,
) -> list[Steering]:
    """One steering per setting and emotion, with dose 1: directions whose doses a sweep multiplies.

    >>> emolab.at(vectors, emolab.Setting(site="attn", layers="late"), ["joy", "0.5 anger + 0.5 joy"])[1].doses
    {'anger': 0.5, 'joy': 0.5}

    emotions: names, names of mixtures, or mixtures {emotion: weight}; default all of the vectors'. Several settings,
    such as those of `emolab.steering.each_layer`, follow one another. Raises EmolabError as `Steering`, for an emotion
    that is neither a name nor a mixture, and for none.
    """
    settings = [setting] if isinstance(setting, Setting) else list(setting)
    blends = mixtures(emotions, vectors.emotions)
    return [
        Steering(vectors, doses, **{name: getattr(one, name) for name in FIELDS})
        for one in settings
        for doses in blends.values()
    ]


def match_steering_norm(control: Steering, steering: Steering) -> Steering:
    """The control's steering, op "add", adding as long a vector as `steering` does at every layer.

    Needed for mixtures: emotions share a part, so their sum is longer than that of random vectors of their norms.
    """
    added = match_norm(control.affine()[0], like=steering.affine()[0])
    site = "attn" if control.site == "head" else control.site  # where heads are summed
    vectors = EmotionVectors({site: added[None]}, ("mixture",), control.vectors.resid_norm, control.vectors.meta)
    return replace(
        control,
        vectors=vectors,
        doses={"mixture": 1.0},
        site=site,
        layers="all",
        heads=None,
        unit="vector",
        part="whole",
    )


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
        check_vectors(model, s.vectors.for_model(model) if allow_mismatch else s.vectors)
        if s.site == "head" and site_hooks(model, "attn", site_layers(model, "attn")[:1])[0].split(".")[2] != "attn":
            raise EmolabError(
                f'{model.name!r} rescales attention before adding it, so heads have no vector there; use site="attn"'
            )
    return rows if any(s is not None for s in rows) else []


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
