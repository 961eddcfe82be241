"""Emotion vectors: what answering with an emotion adds to a model's activations, by layer and head.

EV[e, l] = mean over queries of (activation under e - activation under neutral), each averaged over the response tokens
(arXiv 2502.04075); where no label is neutral, the mean over all labels stands in its place. What all emotions share is
`part("shared")`, the rest `part("specific")`; the two sum to the whole.

>>> import emolab
>>> vectors = emolab.extract_vectors(model, responses)
>>> vectors.get("resid", emotion="joy", layer=3).shape
torch.Size([576])
>>> joyful = 0.5 * vectors.part("specific") + vectors.part("shared")
>>> vectors.save("ev.safetensors")
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError, FileError, MismatchError, need_number, need_texts, shown
from emolab.base.folders import alone
from emolab.base.labels import NEUTRAL, order
from emolab.base.storage import read_tensors, user_path, write_tensors
from emolab.data import FOLDER
from emolab.models.model import Model
from emolab.models.sites import output_weights
from emolab.vectors.activations import MEANS_FILE, ResponseMeans, check_sites, response_means
from emolab.vectors.contrasts import baseline, contrast_weights, shared_queries
from emolab.vectors.corpus import corpus_hash
from emolab.vectors.token_rule import TokenRule, rule_name

FORMAT = "emolab-vectors-1"
SHARED = ("shared",)  # the label of the part that all emotions share
SHIPPED = FOLDER / "vectors"


@dataclasses.dataclass(eq=False, repr=False)
class EmotionVectors:
    """Vectors of several emotions at several sites, with the provenance that says which model they fit.

    Attributes:
        data: float32 tensors on the CPU by site: `resid`, `attn`, `mlp` [emotion, layer, d_model]; `head`
            [emotion, layer, head, d_model], whose sum over heads is `attn`; `neuron` [emotion, layer, neuron], by how
            much each neuron's activation rises (times its row of W_out, they sum to `mlp`).
        emotions: labels of the first axis.
        resid_norm: [layer], the median over neutral responses (over all, where none is neutral) of the mean norm of the
            residual stream: the unit of doses with unit="residual".
        meta: provenance. `baseline` is what was taken off ("neutral" or "mean of 64 labels"), `part` "whole", "shared"
            or "specific"; `steps` lists what was done to the vectors since.
        means: the response means that the vectors came from, for shuffled-label controls and split halves; after `load`
            their file, where it lies in the same folder.
    """

    data: dict[str, Float[Tensor, "emotion layer ..."]]
    emotions: tuple[str, ...]
    resid_norm: Float[Tensor, " layer"]
    meta: dict
    means: ResponseMeans | Path | None = None

    def __post_init__(self):
        self.emotions = tuple(need_texts("the labels of vectors", self.emotions, filled=True))
        if not self.emotions or len(set(self.emotions)) < len(self.emotions):
            raise EmolabError(f"vectors have the labels {shown(self.emotions)}; expected at least one, each once")
        tensors = [*self.data.values(), self.resid_norm] if isinstance(self.data, dict) else [self.data]
        for x in tensors:
            if not isinstance(x, Tensor):
                raise EmolabError(
                    f"vectors' data hold {type(x).__name__} {shown(x)}; expected a tensor for each site and norm"
                )
        sites = check_sites(tuple(self.data))
        self.data = {site: self.data[site].detach().to("cpu", torch.float32) for site in sites}
        self.resid_norm = self.resid_norm.detach().to("cpu", torch.float32)
        shapes = {site: tuple(x.shape) for site, x in self.data.items()}
        axes = (len(self.emotions), len(self.resid_norm))
        fit = all(shape[:2] == axes and len(shape) == (4 if site == "head" else 3) for site, shape in shapes.items())
        if not fit or len({shape[-1] for site, shape in shapes.items() if site != "neuron"}) != 1:
            raise EmolabError(
                f"vectors of shapes {shapes} do not fit their {axes[0]} labels and {axes[1]} layers; expected "
                "[emotion, layer, d_model], with heads before d_model, and one d_model for all sites, "
                "of which there is at least one beside neurons"
            )
        if not (self.resid_norm.isfinite() & (self.resid_norm >= 0)).all():
            raise EmolabError(f"resid_norm is {shown(self.resid_norm.tolist())}; expected finite numbers, none below 0")
        broken = [site for site, x in self.data.items() if not x.isfinite().all()]
        if broken:
            raise EmolabError(f"vectors at {', '.join(broken)} hold NaN or infinity; extract or get them again")

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.data)

    @property
    def n_layers(self) -> int:
        return len(self.resid_norm)

    @property
    def d_model(self) -> int:
        return next(iter(self.data.values())).shape[-1]

    def __repr__(self) -> str:
        labels = ", ".join(self.emotions)
        if len(self.emotions) > 8:
            labels = f"{len(self.emotions)} labels {', '.join(self.emotions[:3])}, ..., {self.emotions[-1]}"
        facts = [f"{self.meta.get('part', 'whole')}: {labels}", ", ".join(self.sites)]
        facts += [f"{self.n_layers} layers, d_model {self.d_model}"]
        if str(self.meta.get("baseline")).startswith("mean"):
            facts += [f"minus the {self.meta['baseline']}"]
        if "token_rule" in self.meta:
            facts += [f"tokens: {self.meta['token_rule']}"]
        return f"EmotionVectors({'; '.join([*facts, str(self.meta.get('model'))])})"

    def get(
        self, site: str = "resid", *, emotion: str | None = None, layer: int | None = None, head: int | None = None
    ) -> Float[Tensor, "*axes d_model"]:
        """The vectors of one site, axes [emotion, layer, (head,) d_model]; each name or number given drops its axis.

        At site "neuron" the last axis is neurons. A negative layer or head counts from the end. Raises EmolabError for
        what these vectors do not hold.

        >>> vectors.get("resid").shape, vectors.get("head", emotion="joy", layer=0, head=2).shape
        (torch.Size([5, 30, 576]), torch.Size([576]))
        """
        if site not in self.data:
            raise EmolabError(f"these vectors hold no site {site!r}, only {', '.join(self.sites)}; extract it, too")
        x = self.data[site]
        if head is not None:
            if site != "head":
                raise EmolabError(f"head={head} goes with site 'head', not {site!r}")
            x = x.select(2, need_place("head", head, x.shape[2], low=-x.shape[2]))
        if layer is not None:
            x = x.select(1, need_place("layer", layer, self.n_layers, low=-self.n_layers))
        if emotion is not None:
            x = x.select(0, self.place(emotion))
        return x

    def place(self, emotion: str) -> int:
        """Where an emotion stands on the first axis; EmolabError for one that these vectors do not hold.

        >>> vectors.place("joy")
        3
        """
        if emotion not in self.emotions:
            raise EmolabError(f"unknown emotion {shown(emotion)}; expected one of {', '.join(self.emotions)}")
        return self.emotions.index(emotion)

    def select(self, emotions: Sequence[str]) -> EmotionVectors:
        """The vectors of some labels, in this order. Shared and specific part are then those of these labels alone.

        >>> vectors.select(["joy", "anger"]).emotions
        ('joy', 'anger')

        The means are kept, so that controls from shuffled labels (`emolab.vectors.shuffled_like`) are drawn from the
        responses of all labels. Raises EmolabError for a label that these vectors lack, one given twice, and none.
        """
        emotions = [emotions] if isinstance(emotions, str) else list(emotions)
        wrong = [e for e in emotions if e not in self.emotions or emotions.count(e) > 1]
        if wrong or not emotions:
            refused = f"{shown(wrong[0])}{' twice' * (wrong[0] in self.emotions)}" if wrong else "no emotion"
            raise EmolabError(f"cannot select {refused}; choose from {', '.join(self.emotions)}, each once")
        rows = [self.place(emotion) for emotion in emotions]
        facts = {"selected": emotions, "selected_part": self.meta.get("part", "whole")}
        return self._each(lambda x: x[rows], f"select {', '.join(emotions)}", emotions=tuple(emotions), facts=facts)

    def part(self, name: str) -> EmotionVectors:
        """ "whole": these; "shared": their mean over emotions, under the single label "shared"; "specific": the rest.

        Shared and specific sum to the whole; the specific parts of all emotions sum to zero. Nothing is shared, and the
        shared part zero, where the baseline is the mean of these very labels.

        >>> vectors.part("specific") + vectors.part("shared")
        """
        if name == "whole":
            return self
        if name == "shared":
            return self._each(_shared, "shared", emotions=SHARED, facts={"part": "shared"})
        if name == "specific":
            return self._each(lambda x: x - _shared(x), "specific", facts={"part": "specific"})
        raise EmolabError(f"unknown part {shown(name)}; expected whole, specific or shared")

    def normalized(self) -> EmotionVectors:
        """Unit norm for each emotion and layer (head: and head, so heads no longer sum to attn); zero stays zero."""
        return self._each(lambda x: torch.nn.functional.normalize(x.double(), dim=-1, eps=1e-30).float(), "normalized")

    def __add__(self, other: EmotionVectors) -> EmotionVectors:
        if not isinstance(other, EmotionVectors):
            return NotImplemented
        if self.emotions == SHARED != other.emotions:  # the base belongs to every emotion
            return other + self
        same_model = self.meta.get("fingerprint") == other.meta.get("fingerprint")
        same_shape = self.sites == other.sites and all(
            x.shape[1:] == other.data[site].shape[1:] for site, x in self.data.items()
        )
        if not (same_model and same_shape and other.emotions in (self.emotions, SHARED)):
            raise MismatchError(f"cannot add {other!r} to {self!r}; they must share model, sites and emotions")
        parts = {self.meta.get("part"), other.meta.get("part")}
        part = parts.pop() if len(parts) == 1 else "whole"
        return self._each(lambda x, y: x + y, f"+ {other!r}", other=other, facts={"part": part})

    def __sub__(self, other: EmotionVectors) -> EmotionVectors:
        return self + -other if isinstance(other, EmotionVectors) else NotImplemented

    def __mul__(self, factor: int | float) -> EmotionVectors:
        if not isinstance(factor, Real):
            return NotImplemented
        need_number("the factor of vectors", factor)
        return self._each(lambda x: x * float(factor), f"* {float(factor):g}")

    __rmul__ = __mul__

    def __neg__(self) -> EmotionVectors:
        return self * -1.0

    def for_model(self, model: Model) -> EmotionVectors:
        """The same vectors, said by hand to belong to this model, which then takes them: of its sister, or unbound.

        >>> steering = emolab.Steering(vectors.for_model(model), {"joy": 1.5})

        `meta["made_on"]` keeps whose they were. Raises MismatchError for a model with another number of layers or
        d_model.
        """
        check_vectors(model, self, shape_alone=True)
        origin = {"model": self.meta.get("model"), "fingerprint": self.meta.get("fingerprint")}
        facts = {"model": model.name, "revision": model.revision, "fingerprint": model.fingerprint}
        facts["made_on"] = self.meta.get("made_on", origin)
        return self._each(lambda x: x, f"for {model.name}", facts=facts)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file (atomically), provenance in its header."""
        header = {**self.meta, "sites": list(self.sites), "emotions": list(self.emotions)}
        write_tensors(path, FORMAT, {**self.data, "resid_norm": self.resid_norm}, header)

    @classmethod
    def load(cls, path: str | Path) -> EmotionVectors:
        """Read what `save` wrote, bit for bit. EmolabError for a missing or damaged file or one of another kind."""
        tensors, meta = read_tensors(path, FORMAT)
        means = user_path(path).with_name(MEANS_FILE)
        try:
            if not all(isinstance(meta.get(key, []), list) for key in ("sites", "emotions", "steps")):
                raise TypeError("sites, emotions and steps are lists")
            data = {site: tensors[site] for site in meta["sites"]}
            return cls(data, meta["emotions"], tensors["resid_norm"], meta, means if means.exists() else None)
        except KeyError as error:
            raise FileError(f"{path} lacks {error}; it was written by another version or damaged") from error
        except (EmolabError, TypeError, AttributeError, IndexError) as error:
            raise FileError(f"{path} holds no sound vectors ({error}); save it again") from error

    def _each(
        self,
        change: Callable,
        step: str,
        *,
        other: EmotionVectors | None = None,
        emotions: tuple[str, ...] | None = None,
        facts: dict | None = None,
    ) -> EmotionVectors:
        """The vectors with `change` made at every site, and a note of it and of these facts in the provenance."""
        data = {site: change(x, other.data[site]) if other else change(x) for site, x in self.data.items()}
        emotions = self.emotions if emotions is None else emotions
        # Where text breaks was found for these very vectors.
        meta = {key: value for key, value in self.meta.items() if key != "breaking"}
        meta |= {**(facts or {}), "emotions": list(emotions), "steps": [*self.meta.get("steps", []), step]}
        return EmotionVectors(data, emotions, self.resid_norm, meta, self.means)


def need_place(axis: str, number: Any, size: int, *, low: int = 0) -> int:
    """The number of a layer or head as an int; EmolabError unless it lies from `low` to size - 1."""
    try:
        place = size if isinstance(number, bool) else operator.index(number)
    except TypeError:
        place = size
    if not low <= place < size:
        raise EmolabError(f"unknown {axis} {shown(number)}; expected a whole number from {low} to {size - 1}")
    return place


def match_norm(x: Float[Tensor, "*shape d"], like: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
    """The directions of `x` with the norms of `like`, float64; zero stays zero.

    >>> match_norm(torch.tensor([3.0, 4.0]), like=torch.tensor([0.0, 10.0]))
    tensor([6., 8.], dtype=torch.float64)
    """
    return torch.nn.functional.normalize(x.double(), dim=-1) * like.double().norm(dim=-1, keepdim=True)


def check_vectors(model: Model, vectors: EmotionVectors, *, shape_alone: bool = False) -> None:
    """MismatchError for vectors of another shape or other weights; those of unknown origin fit by their shape."""
    fits = (vectors.n_layers, vectors.d_model) == (model.n_layers, model.d_model)
    fingerprint = vectors.meta.get("fingerprint")
    if fits and (shape_alone or fingerprint in (None, "", model.fingerprint)):
        return
    raise MismatchError(
        f"these vectors are of another model: {vectors.meta.get('model', 'unnamed')!r} ({vectors.n_layers} layers, "
        f"d_model {vectors.d_model}, fingerprint {fingerprint}), and this is {model.name!r} ({model.n_layers} layers, "
        f"d_model {model.d_model}, fingerprint {model.fingerprint}); "
        + ("vectors.for_model(model) uses them all the same" if fits else "shapes must agree")
    )


def load_vectors(name: str | Path = "smollm2") -> EmotionVectors:
    """Vectors that come with the package, for a first steering in seconds; or those of a file.

    >>> vectors = emolab.load_vectors("smollm2")
    >>> emolab.generate(model, "How was your day?", steering=emolab.Steering(vectors, {"joy": 4.0}, site="attn",
    ...     layers="late"))

    "smollm2": the five default emotions at sites resid and attn, of the default model: from frames around an emotion
    word, against the mean of 64 such words (docs/results.md shows what they do). They carry the alphas at which text
    breaks in the usual settings (unit="breaking"), and no response means: a control from shuffled labels needs vectors
    of your own. Raises EmolabError for a name that is neither bundled nor a file.
    """
    shipped = {file.stem: file for file in SHIPPED.glob("*.safetensors")}
    path = shipped.get(str(name), name)
    if not isinstance(path, str | Path) or not user_path(path).is_file():
        given = str(name) if isinstance(name, Path) else name
        known = ", ".join(sorted(shipped))
        raise EmolabError(f"no vectors {shown(given)}; bundled are {known}; or give the path of a saved file")
    return EmotionVectors.load(path)


@alone
def extract_vectors(
    model: Model,
    responses: pd.DataFrame | None,
    *,
    sites: Sequence[str] = ("resid", "attn", "head"),
    tokens: TokenRule = "response",
    means: ResponseMeans | None = None,
    out: str | Path | None = None,
    batch_size: int | None = None,
    too_long: str = "refuse",
) -> EmotionVectors:
    """Emotion vectors from responses: one forward pass, then differences of means (arXiv 2502.04075, section 3).

    Args:
        responses: from `collect_responses` or `responses_from_texts`, with the condition "neutral" and another one, or
            with at least three that are not neutral: then each vector is that label minus the mean over all labels.
        sites: as `response_means` takes them, and so are `tokens`, `batch_size` and `too_long`.
        means: from `response_means` of the same responses: then there is no forward pass, and `responses` may be None.
        out: a folder, into which `vectors.safetensors` and `response_means.safetensors` are written; means that it
            holds already, of the same model, responses and tokens, are read and not measured again.

    Raises:
        EmolabError: as `response_means`; without neutral or emotional responses; for `means` of another model, other
            responses, another token rule or fewer sites.

    >>> vectors = emolab.extract_vectors(model, responses, sites=("resid",), out="runs/x")
    """
    sites = check_sites(sites)
    if means is not None:
        _need_means_of(model, means, responses, rule_name(tokens))
        if out is not None:
            means.save(user_path(out) / MEANS_FILE)
    elif responses is not None:
        means = response_means(
            model, responses, sites=sites, tokens=tokens, batch_size=batch_size, out=out, too_long=too_long
        )
    else:
        raise EmolabError("extract_vectors needs responses or means")
    W_O = output_weights(model) if "head" in sites else None
    vectors = vectors_from_means(means, W_O=W_O, sites=sites)
    if out is not None:
        vectors.save(user_path(out) / "vectors.safetensors")
    return vectors


def _need_means_of(model: Model, means: ResponseMeans, responses: pd.DataFrame | None, rule: str) -> None:
    """EmolabError for means of another model, of other responses, or over other tokens."""
    if not isinstance(means, ResponseMeans):
        raise EmolabError(f"means are {type(means).__name__} {shown(means)}; expected ResponseMeans")
    wanted = [("another model", "fingerprint", model.fingerprint), ("other tokens", "token_rule", rule)]
    if responses is not None:
        wanted.append(("other responses", "corpus_hash", corpus_hash(responses)))
    for what, key, value in wanted:
        if means.meta.get(key) != value:
            raise MismatchError(
                f"the means are of {what} ({key} {means.meta.get(key)!r}, not {value!r}); give those of this model, "
                "these responses and tokens, or compute them again with response_means"
            )


def vectors_from_means(
    means: ResponseMeans,
    *,
    W_O: Float[Tensor, "layer head d_head d_model"] | None = None,
    sites: Sequence[str] | None = None,
) -> EmotionVectors:
    """Emotion vectors from stored means, in float64; no model is run.

    How responses weigh: `emolab.vectors.contrasts`. W_O: `emolab.models.output_weights(model)`, needed for site "head".
    sites: default all that `means` holds (`head` only if W_O is given).

    >>> halves = [vectors_from_means(means.select(half)) for half in (first, second)]    # split-half reliability
    """
    sites = check_sites(sites or [site for site in means.sites if site != "head" or W_O is not None])
    missing = [site for site in sites if site not in means.means]
    if missing or ("head" in sites and W_O is None):
        lack = f"the means hold no site {missing[0]!r}" if missing else "site 'head' needs W_O"
        raise EmolabError(f"{lack}; use response_means(..., sites=...) and output_weights(model)")
    condition = means.index["condition"].to_numpy()
    against = baseline(condition)
    labels = order(condition)
    emotions = tuple(label for label in labels if label != NEUTRAL)
    weights = np.stack([contrast_weights(means.index, emotion) for emotion in emotions])
    rows = np.flatnonzero(weights.any(0))
    data = {}
    for site in sites:
        # Layer by layer: a float64 copy of all layers would triple the memory.
        by_layer = [
            np.tensordot(weights[:, rows], means.means[site][rows, layer].astype(np.float64), 1)
            for layer in range(means.means[site].shape[1])
        ]
        data[site] = torch.from_numpy(np.stack(by_layer, axis=1))
    if W_O is not None and "head" in sites:
        data["head"] = torch.einsum("elhd,lhdm->elhm", data["head"], W_O.to("cpu", torch.float64))
    resid_norm = torch.from_numpy(np.median(means.resid_norm[np.isin(condition, against)], axis=0))
    meta = {
        **means.meta,
        "sites": list(sites),
        "emotions": list(emotions),
        "n_responses": {str(label): int((condition == label).sum()) for label in labels},
        "part": "whole",
        "baseline": NEUTRAL if against == [NEUTRAL] else f"mean of {len(against)} labels",
        "resid_norm": [round(float(x), 6) for x in resid_norm],
        "n_pairs": {e: len(shared_queries(means.index, e, against)) for e in emotions},  # 0: unpaired
    }
    return EmotionVectors(data, emotions, resid_norm, meta, means)


def _shared(x: Tensor) -> Tensor:
    """The mean over emotions, and zero where that is rounding only: a direction of it would be noise."""
    mean = x.double().mean(0, keepdim=True)
    rounding = 1e-5 * x.double().norm(dim=-1, keepdim=True).mean(0, keepdim=True)
    return torch.where(mean.norm(dim=-1, keepdim=True) > rounding, mean, 0).to(x.dtype)
