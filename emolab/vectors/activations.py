"""Activations: for each response, the mean over its counted tokens at every layer and site, in one forward pass.

>>> import emolab
>>> model = emolab.load_model("smollm2")
>>> responses = emolab.responses_from_texts({"joy": ["What a lovely day!"], "neutral": ["It is a day."]})
>>> means = emolab.response_means(model, responses, sites=("resid", "head"))
>>> means.means["resid"].shape          # [response, layer, d_model]
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError, FileError, need_model, need_table, shown
from emolab.base.progress import progress_bar
from emolab.base.storage import read_tensors, user_path, write_tensors
from emolab.models.finite import not_finite
from emolab.models.memory import halving
from emolab.models.model import Model, provenance
from emolab.models.prompts import plan_batches
from emolab.models.sites import (
    ALL_SITES,
    SITES,
    WHOLE,
    bridge_has_hooks,
    check_bridge,
    head_weights,
    neuron_weight,
    site_layers,
)
from emolab.models.workers import on_cluster, run_chunks
from emolab.vectors.corpus import check_origin, checked, corpus_hash, prompted, template_hash
from emolab.vectors.reading import attention_kind, batch_means, check_parts
from emolab.vectors.token_rule import TokenRule, counted_tokens, fitted, rule_name

FORMAT = "emolab-response-means-1"
MEANS_FILE = "response_means.safetensors"


@dataclasses.dataclass(eq=False)
class ResponseMeans:
    """Per-response means of activations, the raw material of emotion vectors, maps and probes.

    Attributes:
        index: one row a response: `query_id, emotion, condition, n_tokens` (how many tokens counted).
        means: float32 arrays by site. `resid`, `attn`, `mlp`: [response, layer, d_model]. `head`: the mean input z of
            the output projection [response, layer, head, d_head]; `z @ W_O[layer, head]` is that head's contribution.
            `neuron`: the mean activations, that is, the input of the MLP's output projection [response, layer, neuron].
        resid_norm: mean over tokens of the norm of the residual stream, float32 [response, layer].
        meta: provenance (model, fingerprint, token rule, corpus hash, dtype, versions).
    """

    index: pd.DataFrame
    means: dict[str, Float[np.ndarray, "response layer ..."]]
    resid_norm: Float[np.ndarray, "response layer"]
    meta: dict

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.means)

    def __len__(self) -> int:
        return len(self.index)

    def select(self, rows: np.ndarray | pd.Series | Sequence[int]) -> ResponseMeans:
        """The same for some of the responses, by a boolean mask or by positions: for split halves, subsets, probes."""
        chosen = np.asarray(rows)
        chosen = chosen if chosen.size else chosen.astype(int)  # an empty list has no type
        n = len(self.index)
        try:
            positions = np.arange(n)[chosen]
        except IndexError:
            positions = None
        if positions is None or positions.ndim != 1:
            raise EmolabError(
                f"rows are {shown(chosen.tolist())}; expected positions below {n}, or {n} times True or False"
            )
        means = {site: values[positions] for site, values in self.means.items()}
        index = self.index.iloc[positions].reset_index(drop=True)
        return dataclasses.replace(self, index=index, means=means, resid_norm=self.resid_norm[positions])

    def within_queries(self) -> ResponseMeans:
        """Each response less the mean of all responses to its query: how conditions differ, whatever was asked.

        >>> geometry.embed(means.within_queries())
        """
        queries, query = np.unique(self.index["query_id"], return_inverse=True)
        means = {}
        for site, values in self.means.items():
            total = np.zeros((len(queries), *values.shape[1:]))
            np.add.at(total, query, values)
            mean = total / np.bincount(query).reshape(-1, *[1] * (values.ndim - 1))
            means[site] = (values - mean[query]).astype(np.float32)
        return dataclasses.replace(self, means=means)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file (atomically); the index and the provenance travel in its header."""
        tensors = {site: torch.from_numpy(values) for site, values in self.means.items()}
        header = {**self.meta, "index": self.index.to_json(orient="split", index=False)}
        write_tensors(path, FORMAT, {**tensors, "resid_norm": torch.from_numpy(self.resid_norm)}, header)

    @classmethod
    def load(cls, path: str | Path) -> ResponseMeans:
        """Read what `save` wrote. Raises EmolabError for a damaged file or one of another kind."""
        tensors, meta = read_tensors(path, FORMAT)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        try:
            index = pd.read_json(StringIO(meta.pop("index")), orient="split", dtype=False)
            resid_norm = arrays.pop("resid_norm")
            layers = (len(index), *resid_norm.shape[1:])
            need_table(index, ("query_id", "emotion", "condition", "n_tokens"), "response_means")
            for site, values in {"resid_norm": resid_norm, **arrays}.items():
                axes = {"resid_norm": 2, "head": 4}.get(site, 3)
                if values.shape[:2] != layers or values.ndim != axes or not np.isfinite(values).all():
                    raise ValueError(f"{site} has another shape than rows, layers, ... or is not finite")
            index = index.astype(dict.fromkeys(("query_id", "emotion", "condition"), "str"))
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise FileError(
                f"{path} holds response means without a fitting index ({error}); collect them again"
            ) from error
        return cls(index, {site: arrays[site] for site in ALL_SITES if site in arrays}, resid_norm, meta)


def response_means(
    model: Model,
    responses: pd.DataFrame,
    *,
    sites: Sequence[str] = SITES,
    tokens: TokenRule = "response",
    batch_size: int | None = None,
    out: str | Path | None = None,
    too_long: str = "refuse",
) -> ResponseMeans:
    """Run each response once behind its prompt and average activations over the tokens of its text that count.

    >>> means = emolab.response_means(model, responses, sites=("resid",), tokens="from:8")

    The means are taken in float64 inside the forward pass; nothing else is kept, so memory is that of the result
    (4 bytes x responses x layers x d_model a site). Neither padding nor the batch changes a mean. Inside
    `emolab.steered(...)` the means are those of the steered model.

    Args:
        responses: from `collect_responses` or `responses_from_texts`; `condition` and `text` are needed,
            `prompt` is what comes before the text, and does not count. Where it is missing, the text is read behind
            the neutral prompt of its `query` (without one, of `labels.NEUTRAL_QUERY`) if the model has a chat
            template, else by itself, behind BOS where the tokenizer adds one. `start`, if there: the character of the
            text from which on its tokens count.
        sites: any of `resid`, `attn`, `mlp`, `head`, `neuron`; one pass serves all.
        tokens: which tokens of a text count: "response" (all), "last", "from:8" (from the eighth on) or a function that
            takes a text's tokens (list[str], white space before them included) and returns True or False for each.
            Position 0 of a sequence never counts.
        batch_size: default by the number of padded tokens.
        out: a folder; `response_means.safetensors` is written into it, and read from it where it holds these means
            already: of the same model, responses, prompts and token rule.
        too_long: what becomes of texts that with their prompt do not fit the model's context: "refuse" (one error names
            all of them), "cut" (their beginning is read) or "drop".

    Raises:
        EmolabError: unknown site, texts that are too long, a condition without a token that counts, a text whose only
            token is position 0, labels that look alike but for case, activations that are not finite, or an
            architecture that TransformerLens computes wrongly or whose heads do not add up to its attention output.
    """
    sites = check_sites(sites)
    need_model(model)
    rule = rule_name(tokens)
    responses = checked(responses)
    check_origin(model, responses)
    wanted = {*sites} | {WHOLE[site] for site in sites if site in WHOLE}  # which heads and neurons are checked against
    hooked = _hooked(model)
    meta = {**provenance(model), "attention": attention_kind(model, wanted), "hooked": hooked, "token_rule": rule}
    meta["corpus_hash"] = corpus_hash(responses)
    responses, behind = prompted(model, responses)
    meta |= {"template_hash": template_hash(responses), **behind}
    check_bridge(model)
    if "head" in sites:
        head_weights(model, site_layers(model, "head")[0])  # says at once where heads cannot be told apart
    if "neuron" in sites:
        neuron_weight(model, site_layers(model, "neuron")[0], torch.float32)
    _warn_of_missing(model, sites)
    responses, lengths, note = fitted(model, responses, too_long)
    meta |= note
    responses, counted = counted_tokens(model, responses, tokens)
    index = responses[["query_id", "emotion", "condition"]].assign(n_tokens=[int(x.sum()) for x in counted])
    index = index.reset_index(drop=True)
    if out is not None and isinstance(tokens, str) and not hooked:  # what a function or a hook does is unknown
        kept = _kept(user_path(out), index, meta, sites)
        if kept is not None:
            return kept
    plan = plan_batches(model, [lengths[row] for row in responses.index], batch_size)
    arrays: dict[str, np.ndarray] = {}
    with progress_bar("activations", len(responses)) as bar:
        for rows, batch in _read(model, responses, counted, wanted, plan):
            for name, values in batch.items():
                if name not in arrays:
                    arrays[name] = np.empty((len(responses), *values.shape[1:]), np.float32)
                arrays[name][rows] = values
            _need_finite(model, batch)
            bar.update(len(rows))
    for site in {*sites} & {*WHOLE}:
        check_parts(model, site, arrays[site], arrays[WHOLE[site]])
    means = ResponseMeans(index, {site: arrays[site] for site in sites}, arrays["resid_norm"], meta)
    if out is not None:
        means.save(user_path(out) / MEANS_FILE)
    return means


def _read(
    model: Model, responses: pd.DataFrame, counted: list[np.ndarray], sites: set[str], plan: list[list[int]]
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """(rows, their means) batch by batch, here or on the workers of a cluster."""

    def texts_of(rows: list[int]) -> tuple[list[str], list[str], list[np.ndarray]]:
        some = responses.iloc[rows]  # strings of one batch at a time: a table holds them in a third of the memory
        return some["prompt"].tolist(), some["text"].tolist(), [counted[i] for i in rows]

    if on_cluster():
        batches = [(*texts_of(rows), sites) for rows in plan]
        for done in run_chunks(model, _batch_on_worker, batches, name="activations"):
            yield from ((plan[number], batch) for number, batch in done.items())
        return
    scratch: dict[torch.device, Tensor] = {}
    yield from halving(lambda rows: batch_means(model, *texts_of(rows), sites, scratch), plan)


def _batch_on_worker(
    model: Model, prompts: list[str], texts: list[str], counted: list[np.ndarray], sites: set[str]
) -> dict[str, np.ndarray]:
    """`batch_means` of one batch, which is halved where it does not fit the worker's memory."""
    scratch: dict[torch.device, Tensor] = {}

    def measure(rows: list[int]) -> dict[str, np.ndarray]:
        some_prompts = [prompts[i] for i in rows]
        return batch_means(model, some_prompts, [texts[i] for i in rows], [counted[i] for i in rows], sites, scratch)

    parts = [part for _, part in halving(measure, [list(range(len(texts)))])]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _hooked(model: Model) -> bool:
    """Whether hooks may change what the model computes: those of `steered`, or a user's own."""
    hooks = (x for m in model.hf.modules() for x in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    made_by = (getattr(hook, "__module__", None) or "" for hook in hooks)
    # transformers leaves hooks that only look on; `load_model` puts one on the output head.
    harmless = ("transformers.utils.output_capturing", "emolab.models.model")
    return bridge_has_hooks(model) or any(name not in harmless for name in made_by)


def _kept(out: Path, index: pd.DataFrame, meta: dict, sites: Sequence[str]) -> ResponseMeans | None:
    """The means that a folder holds, if they are those that would be measured; a damaged file is made again."""
    try:
        kept = ResponseMeans.load(out / MEANS_FILE)
    except FileError:
        return None
    same = kept.index.equals(index) and all(kept.meta.get(key) == value for key, value in meta.items())
    if not same or not set(sites) <= set(kept.sites):
        return None
    return dataclasses.replace(kept, means={site: kept.means[site] for site in sites})


def _warn_of_missing(model: Model, sites: Sequence[str]) -> None:
    """Warn, once for all of them, of layers that lack a site: those without attention of a hybrid model."""
    by_layers: dict[str, list[str]] = {}
    for site in sites:
        missing = sorted({*range(model.n_layers)} - {*site_layers(model, site)})
        if missing:
            by_layers.setdefault(", ".join(map(str, missing)), []).append(site)
    if by_layers:
        gaps = "; ".join(f"no {', '.join(lacking)} in layers {layers}" for layers, lacking in by_layers.items())
        warnings.warn(f"{model.name!r} has {gaps}; means and vectors are zero there", stacklevel=3)


def check_sites(sites: Sequence[str]) -> tuple[str, ...]:
    """The sites in their fixed order; EmolabError for an unknown or no site."""
    sites = (sites,) if isinstance(sites, str) else tuple(sites or ())
    unknown = [site for site in sites if site not in ALL_SITES]
    if unknown or not sites:
        what = f"unknown site {shown(unknown[0])}" if unknown else "no site given"
        raise EmolabError(f"{what}; choose from {', '.join(ALL_SITES)}")
    return tuple(site for site in ALL_SITES if site in sites)


def _need_finite(model: Model, batch: dict[str, np.ndarray]) -> None:
    """EmolabError that names the first layer that is not finite; at once, not after an hour of reading."""
    wrong = {name: ~np.isfinite(x).all(axis=(0, *range(2, x.ndim))) for name, x in batch.items()}
    first = {name: int(np.argmax(layers)) for name, layers in wrong.items() if layers.any()}
    if first:
        site = min(first, key=lambda name: (first[name], name == "resid_norm"))
        where = f" at {site.removesuffix('_norm')} from layer {first[site]} on"
        raise not_finite(model, "the activations", where=where)
