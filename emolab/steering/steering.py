"""Steering: add emotion vectors to a model's activations, turn these to them, remove them, or hold them at a value.

Every edit, of every row, begins with one affine map of the activation x at one layer:

    x  ->  x + shift + (x read) write          shift [d_model], read [d_model, k], write [k, d_model]

    add      shift is the sum of the doses times their vectors; read and write are empty
    ablate   read spans the vectors, write = -dose read^T
    clamp    read holds their unit directions, write = -pinv(read), shift moves the components to their target
    rotate   as add; what comes out is brought back to the norm of x
    cap      as clamp, but components below their target stay as they are

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
from emolab.base.tables import span
from emolab.models.hooks import Place
from emolab.models.model import Model
from emolab.models.roles import ROLES
from emolab.models.sites import site_hooks, site_layers
from emolab.steering.conditions import When
from emolab.steering.edits import AffineEdit, BentEdit, Condition, hooked
from emolab.steering.positions import PositionMask
from emolab.steering.settings import FIELDS, Setting, layer_numbers, mixtures
from emolab.vectors.controls import head_mask
from emolab.vectors.vectors import EmotionVectors, check_vectors, match_norm, need_place


@dataclass(frozen=True, eq=False)
class Steering:
    """What to do to a model's activations: which vectors, how much, where.

    >>> Steering(vectors, {"joy": 1.5, "fear": -0.5})                                    # at every layer's end
    >>> Steering(vectors, {"joy": 0.1}, site="attn", layers=[2, 3], unit="residual")     # a tenth of resid's norm
    >>> Steering(vectors, {"joy": 1.0}, op="ablate", positions="all")                    # no joy anywhere
    >>> Steering(vectors, {"joy": 2.0}, site="head", heads={3: [0, 2]})                  # two heads' own vectors
    >>> Steering(vectors, {"joy": 3.0}, fade=8)                                          # half of it 8 tokens later
    >>> Steering(vectors, {"joy": 1.5}, op="rotate")                                     # every norm stays
    >>> Steering(vectors, {"anger": 0.5}, op="cap", positions="all")                     # no more anger than this
    >>> angry = emolab.When(vectors, "anger", above=1.0, layer=10)                       # only at angry tokens
    >>> Steering(vectors, {"joy": 1.5}, layers="late", when=angry)

    doses      {emotion: alpha}; `unit` says what alpha counts, and op what is done with alpha vectors:
    op         "add": x becomes x + alpha v. "rotate": |x| (x + alpha v) / |x + alpha v|, which turns x in the plane of
               both towards v (where alpha is below 0, away from it) and keeps its norm; in small doses it is "add"
               without what is added along x. "clamp": the component along v becomes that of alpha v. "cap": it becomes
               at most that of alpha v, alpha not below 0, and what lies below stays. "ablate": alpha is the share of
               the projection on the vectors' span to remove, 1 for all of it, the same for every emotion.
    unit       "vector": the vector itself. "residual": the median norm of the residual stream at that layer.
               "breaking": the alpha at which text breaks in this setting, found by `find_breaking` and kept with the
               vectors; 1 breaks it, so that settings, emotions and models can be compared at equal alphas. "ablate"
               takes "vector" alone, and "cap", which does less the larger alpha is, both but "breaking".
    site       resid, attn, mlp (see `site_hooks`), or head: the sum of the chosen heads' vectors, at the attention
               output.
    layers     "all", "late" (the second half of the layers) or a list of layer numbers.
    positions  "generated": the last prompt token and all after it (in a plain forward call: its last position);
               "prompt": all tokens of the prompt (in a plain forward call: every position); "user": the words of the
               user's turns; "assistant": those of earlier answers, and as "generated"; "all"; or a slice over a
               row's own tokens, 0 the first one, padding not counted, negative ends counted from the end of the prompt
               (in a plain forward call: over the positions of the given tensor).
    part       "whole" vectors; "specific", what is left of them without their mean over emotions; "shared", that mean:
               {"shared": dose}.
    heads      only with site "head": {layer: [heads]}; None is every head.
    fade       half-life in generated tokens, only with positions "generated": the edit is times 0.5**(t / fade) at the
               t-th of them, 1 at the last prompt token (t = 0); None or infinite does not fade. With op "clamp" this is
               the share of the way to the target, with "cap" to the ceiling, and with "rotate" of alpha. Works in
               `generate` and `token_logprobs`, which know what t is.
    when       a condition (`emolab.When`): tokens that do not meet it are left as they are. It is read at a layer below
               those that are steered, or at the first of these at the same site.

    Ops "clamp" and "cap" with several emotions set all their components at once; where the vectors are linearly
    dependent, by least squares. Raises EmolabError for whatever is not among these, and for a dose that is no finite
    number. Sources: arXiv 2502.04075 (add, clamp), 2510.26243 (rotate), 2601.10387 (cap), 2409.05907 (when).
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
    when: When | None = Setting.when
    setting: Setting = field(init=False, repr=False)
    layer_numbers: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        need_vectors(self.vectors)
        object.__setattr__(self, "setting", Setting(**{name: getattr(self, name) for name in FIELDS}))
        values = self.vectors.get(self.site)
        if not isinstance(self.doses, dict) or not self.doses:
            raise EmolabError(f"doses are {self.doses!r}; expected at least one {{emotion: number}}")
        if self.part == "specific" and len(self.vectors.emotions) < 2:
            raise EmolabError('part "specific" is what tells emotions apart, and these vectors hold only one')
        if self.unit == "residual" and not (self.vectors.resid_norm > 0).all():
            raise EmolabError('these vectors lack the norm of the residual stream; use unit="vector"')
        for emotion, value in self.doses.items():
            if self.part != "shared" or emotion != "shared":
                self.vectors.place(emotion)
            need_number(f"the dose of {emotion!r}", value)
        if self.op == "ablate" and (self.unit != "vector" or len(set(self.doses.values())) > 1):
            raise EmolabError('op "ablate" takes one share for all its emotions (1 removes all), unit "vector"')
        if self.op == "cap" and (self.unit == "breaking" or min(self.doses.values()) < 0):
            raise EmolabError('op "cap" takes a ceiling of at least 0 for each emotion, in unit "vector" or "residual"')
        layers = layer_numbers(self.setting, self.vectors.n_layers)
        if isinstance(self.layers, str):  # "all" are those that have the site: of hybrid models not all
            layers = [layer for layer in layers if values[:, layer].any()] or layers
        object.__setattr__(self, "layer_numbers", layers)
        for layer, heads in (self.heads or {}).items():
            need_place("layer", layer, self.vectors.n_layers)
            for head in heads:
                need_place("head", head, values.shape[2])
        bare = [layer for layer in layers if self.heads is not None and layer not in self.heads]
        if bare:
            raise EmolabError(f"layer {bare[0]} is to be steered, and heads names no head of it; name one")
        if self.when is not None and self.when.layer >= min(layers) + (self.when.site == _hook_site(self)):
            raise EmolabError(
                f"when reads {self.when.site} of layer {self.when.layer}, too late for steering at {self.site} of "
                f"layer {min(layers)}; read a layer below that, or steer only layers above the one that is read"
            )
        self.in_vectors()  # with unit "breaking" an unknown setting is refused here, not in the middle of a run

    @property
    def breaking_key(self) -> str:
        """Site, layers, part, op and positions (heads, when) in one line: what a breaking alpha belongs to.

        >>> Steering(vectors, {"joy": 1.0}, site="attn", layers="late").breaking_key
        'site=attn layers=15-29 part=whole op=add positions=generated'
        """
        layers = sorted(self.layer_numbers)
        span = layers == list(range(layers[0], layers[-1] + 1))
        named = f"{layers[0]}-{layers[-1]}" if span else ",".join(map(str, layers))
        heads = "" if self.heads is None else f" heads={sorted((k, sorted(v)) for k, v in self.heads.items())}"
        when = "" if self.when is None else f" when={self.when}"
        return f"site={self.site} layers={named} part={self.part} op={self.op} positions={self.positions}{heads}{when}"

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
            data = data[[self.vectors.place(emotion) for emotion in self.doses]]
        if self.site == "head":
            data = (data * head_mask(self.heads, data.shape[1:3])[..., None]).sum(2)
        return data

    def table(self) -> Float[Tensor, "layer d_model"]:
        """What op "add" adds at each layer; zero where nothing is."""
        if self.op != "add":
            raise EmolabError(
                f'op {self.op!r} depends on the activation and adds no fixed vector; only "add" has a table'
            )
        return self.affine()[0].float()

    def affine(self) -> tuple[Tensor, Tensor, Tensor]:
        """shift [layer, d_model], read [layer, d_model, k], write [layer, k, d_model]; all zero at other layers."""
        v = self.directions()
        n_layers, d_model = v.shape[1:]
        norm = v.norm(dim=-1)
        residual = self.unit == "residual"
        if (self.op not in ("add", "rotate") or residual) and not norm[:, self.layer_numbers].all():
            raise EmolabError(
                f'a vector is zero at a chosen layer, without direction; op "{self.op}" and unit "{self.unit}" need it'
            )
        unit = v / norm.clamp_min(torch.finfo(v.dtype).tiny)[..., None]
        by_layer = unit.transpose(0, 1)  # [layer, emotion, d_model]
        doses = v.new_tensor(list(self.in_vectors().values()))[:, None]
        length = doses * (self.vectors.resid_norm.to(v).expand_as(norm) if residual else norm)
        if self.op in ("add", "rotate"):
            # Without the residual's norm the vector itself is multiplied: norm times unit would not give back its bits.
            shift = (unit * length[..., None] if residual else v * doses[..., None]).sum(0)
            read = v.new_zeros(n_layers, d_model, 0)
            write = v.new_zeros(n_layers, 0, d_model)
        elif self.op == "ablate":
            _, size, basis = torch.linalg.svd(by_layer, full_matrices=False)
            basis = basis * (size > 1e-6 * size[:, :1])[..., None]
            shift = v.new_zeros(n_layers, d_model)
            read = basis.transpose(1, 2)
            write = -doses[0] * basis
        else:
            inverse = torch.linalg.pinv(by_layer).transpose(1, 2)
            shift = torch.einsum("el,led->ld", length, inverse)
            read = by_layer.transpose(1, 2)
            write = -inverse
        chosen = v.new_zeros(n_layers, 1)
        chosen[self.layer_numbers] = 1
        return shift * chosen, read, write * chosen[..., None]


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
    return [Steering(vectors, doses, **vars(one)) for one in settings for doses in blends.values()]


def match_steering_norm(control: Steering, steering: Steering) -> Steering:
    """The control's steering, op "add" or "rotate", adding as long a vector as `steering` does at every layer.

    Needed for mixtures: emotions share a part, so their sum is longer than that of random vectors of their norms.
    """
    added = match_norm(control.affine()[0], like=steering.affine()[0])
    site = "attn" if control.site == "head" else control.site  # where heads are summed
    vectors = EmotionVectors({site: added[None]}, ("mixture",), control.vectors.resid_norm, control.vectors.meta)
    doses = {"mixture": 1.0}
    return replace(
        control, vectors=vectors, doses=doses, site=site, layers="all", heads=None, unit="vector", part="whole"
    )


def as_rows(model: Model, steering: Any) -> list[Steering | None]:
    """One steering for all rows as a list of one, or one per row, checked against the model; empty if all None."""
    need_model(model)
    rows = list(steering) if isinstance(steering, list | tuple) else [steering]
    odd = [type(row).__name__ for row in rows if row is not None and not isinstance(row, Steering)]
    if odd or not rows:
        given = odd[0] if odd else "an empty list"
        raise EmolabError(f"steering is {given}; expected a Steering, None, or a list of these, one per row")
    for row in _different(rows):
        check_vectors(model, row.vectors)
        _need_layers(model, row.site, row.layer_numbers, "this steering would act")
        if row.when is not None:
            check_vectors(model, row.when.vectors)
            _need_layers(model, row.when.site, [row.when.layer], "when reads")
        if row.site == "head" and site_hooks(model, "attn", site_layers(model, "attn")[:1])[0].split(".")[2] != "attn":
            raise EmolabError(
                f'{model.name!r} rescales attention before adding it, so heads have no vector there; use site="attn"'
            )
    return rows if _different(rows) else []


def _need_layers(model: Model, site: str, layers: Sequence[int], use: str) -> None:
    """EmolabError where the model has the site in none of these layers."""
    has = site_layers(model, site)
    if not {*has} & {*layers}:
        raise EmolabError(
            f"{model.name!r} has no site {site!r} in layers {span(layers)}, where {use}; layers {span(has)} have it"
        )


def _different(rows: Sequence[Steering | None]) -> list[Steering]:
    return list(dict.fromkeys(row for row in rows if row))


def needs_roles(rows: Sequence[Steering | None]) -> bool:
    """Whether any of these acts where a role speaks."""
    return any(row is not None and row.positions in ROLES for row in rows)


def build_edits(
    model: Model,
    rows: list[Steering | None],
    prompts: list[tuple[int, int]] | None = None,
    cached: bool = False,
    roles: list[list[str | None]] | None = None,
) -> dict[Place, AffineEdit]:
    """Edits by (site, layer), only where there is something to do, on the model's device.

    prompts, cached, roles: as `PositionMask` takes them.
    """
    fade = [row.fade or math.inf if row else math.inf for row in rows]
    mask = PositionMask([row.positions if row else "all" for row in rows], prompts, cached, fade, roles)
    different = _different(rows)
    maps = {row: [x.float() for x in row.affine()] for row in different}
    rank = max((read.shape[2] for _, read, _ in maps.values()), default=0)
    edits = {}
    for site in dict.fromkeys(map(_hook_site, different)):
        shift = torch.zeros(model.n_layers, len(rows), model.d_model, dtype=torch.float32, device="cpu")
        read = shift.new_zeros(*shift.shape, rank)
        write = read.new_zeros(model.n_layers, len(rows), rank, model.d_model)
        for i, row in enumerate(rows):
            if row and _hook_site(row) == site:
                k = maps[row][1].shape[2]
                shift[:, i], read[:, i, :, :k], write[:, i, :k] = maps[row]
        used = shift.flatten(1).any(1) | write.flatten(1).any(1)
        for layer in used.nonzero()[:, 0].tolist():
            edits[site, layer] = AffineEdit(
                shift[layer].to(model.device), read[layer].to(model.device), write[layer].to(model.device), mask
            )
    if any(row.op in ("rotate", "cap") or row.when for row in different):
        return _bent(model, rows, edits, mask)
    return edits


def _bent(
    model: Model, rows: list[Steering | None], edits: dict[Place, AffineEdit], mask: PositionMask
) -> dict[Place, AffineEdit]:
    """The same edits with what is not affine: norms kept, ceilings, and conditions, which are read where they say."""
    nothing = torch.zeros(len(rows), model.d_model, 0, dtype=torch.float32, device=model.device)
    idle = AffineEdit(nothing.sum(2), nothing, nothing.mT, mask)
    on_cpu = {"dtype": torch.float32, "device": "cpu"}  # whatever torch's defaults are
    ops = [row.op if row else None for row in rows]
    turned, capped = (torch.tensor([op == bending for op in ops], device="cpu") for bending in ("rotate", "cap"))
    reading = list(dict.fromkeys(row.when.place for row in rows if row and row.when))
    bent = {place: BentEdit(edits.get(place, idle), turned, capped) for place in dict.fromkeys([*edits, *reading])}
    for place in reading:
        whens = [row.when if row and row.when and row.when.place == place else None for row in rows]
        read = [when.read() if when else torch.zeros(model.d_model, **on_cpu) for when in whens]
        bounds = [when.bounds if when else (-math.inf, math.inf) for when in whens]
        bent[place].reads = condition = Condition(torch.stack(read), *torch.tensor(bounds, **on_cpu).T)
        conditioned = [row for row, when in zip(rows, whens, strict=True) if row and when]
        acted = {(_hook_site(row), layer) for row in conditioned for layer in row.layer_numbers}
        for other in acted & bent.keys():
            bent[other].needs += (condition,)
    return dict(bent)


def _hook_site(steering: Steering) -> str:
    return "attn" if steering.site == "head" else steering.site  # a head's vector lives where heads are summed


@contextlib.contextmanager
def steered(model: Model, steering: Steering | list[Steering | None] | None) -> Iterator[Model]:
    """Inside, every TransformerLens call on the model is steered; outside nothing remains, also after an exception.

    >>> with emolab.steered(model, emolab.Steering(vectors, {"joy": 1.5})) as m:
    ...     logits, cache = m.run_with_cache(tokens, attention_mask=mask)

    A list gives each row of the batch its own steering, None for none. Contexts nest, and `emolab.generate` inside one
    is steered too. Raises EmolabError for vectors of another model (see `EmotionVectors.for_model`), for a list as long
    as neither 1 nor the batch, and where the model ran but a steered layer did not.
    """
    rows = as_rows(model, steering)
    with hooked(model, build_edits(model, rows), plain=False):
        yield model
