"""Activations: for each response, the mean over its tokens at every layer and site, in one forward pass.

>>> import emolab
>>> model = emolab.load_model("mini")
>>> responses = emolab.responses_from_texts({"joy": ["What a lovely day!"], "neutral": ["It is a day."]})
>>> means = emolab.response_means(model, responses, sites=("resid", "head"))
>>> means.means["resid"].shape          # [response, layer, d_model]
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from emolab import models
from emolab.emotions import order
from emolab.errors import EmolabError
from emolab.models import SITES, Model
from emolab.sites import attention_gain, attention_norm, check_bridge, head_weights, output_weights
from emolab.storage import digest, provenance, read_tensors, write_tensors

TOKEN_RULE = "mean over response tokens, BOS and prompt excluded"
FORMAT = "emolab-response-means-1"
# How far heads may miss their layer's attention output, as a share of it; bfloat16 rounds at 0.4 %.
_HEAD_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}


@dataclasses.dataclass(eq=False)
class ResponseMeans:
    """Per-response means of activations, the raw material of emotion vectors, maps and probes.

    Attributes:
        index: one row a response: `query_id, emotion, condition, n_tokens`.
        means: float32 arrays by site. `resid`, `attn`, `mlp`: [response, layer, d_model]. `head`: the mean input z of
            the output projection [response, layer, head, d_head]; `z @ W_O[layer, head]` is that head's contribution.
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
        rows = np.asarray(rows)
        means = {site: values[rows] for site, values in self.means.items()}
        index = self.index.iloc[np.flatnonzero(rows) if rows.dtype == bool else rows].reset_index(drop=True)
        return dataclasses.replace(self, index=index, means=means, resid_norm=self.resid_norm[rows])

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
            if any(len(values) != len(index) for values in (*arrays.values(), resid_norm)):
                raise ValueError("rows and index differ in number")
        except (KeyError, ValueError) as error:
            raise EmolabError(
                f"{path} holds response means without a fitting index ({error}); collect them again"
            ) from error
        index = index.astype(dict.fromkeys(("query_id", "emotion", "condition"), "str"))
        return cls(index, {site: arrays[site] for site in SITES if site in arrays}, resid_norm, meta)


def response_means(
    model: Model,
    responses: pd.DataFrame,
    *,
    sites: Sequence[str] = SITES,
    batch_size: int | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> ResponseMeans:
    """Run each response once behind its prompt and average activations over the response tokens.

    The means are taken in float64 inside the forward pass; nothing else is kept, so memory is that of the result
    (4 bytes x responses x layers x d_model a site). Neither padding nor the batch changes a mean. Inside
    `emolab.steered(...)` the means are those of the steered model.

    Args:
        responses: from `collect_responses` or `responses_from_texts`; `condition` and `text` are needed,
            `prompt` is what comes before the text, and does not count.
        sites: any of `resid`, `attn`, `mlp`, `head`; one pass serves all.
        batch_size: default by the number of padded tokens.
        out: a folder; `response_means.safetensors` is written into it (see `ResponseMeans.load`).

    Raises:
        EmolabError: unknown site, a condition without a token, activations that are not finite, or an architecture
            that TransformerLens computes wrongly or whose heads do not add up to its attention output.
    """
    sites = check_sites(sites)
    responses = _checked(responses)
    meta = {
        **provenance(model),
        "attention": "eager",  # sdpa differs from it by rounding, 1 % in bfloat16
        "token_rule": TOKEN_RULE,
        "template_hash": _template_hash(responses),
        "corpus_hash": corpus_hash(responses),
    }
    check_bridge(model)
    if "head" in sites:
        head_weights(model, 0)  # says at once where heads cannot be told apart
    lengths = _lengths(model, list(responses["text"]))
    responses, lengths = _with_tokens(responses, lengths)
    prompts, texts = list(responses["prompt"]), list(responses["text"])
    totals = [1 + a + b for a, b in zip(lengths, _lengths(model, prompts), strict=True)]  # 1: BOS before a bare text
    wanted = {*sites} | ({"attn"} if "head" in sites else set())  # heads are checked against attn
    result: dict[str, np.ndarray] = {}
    with tqdm(total=len(texts), desc="activations", unit="text", disable=not progress) as bar:
        for rows in models.plan_batches(model, totals, batch_size):
            batch = _batch_means(model, [prompts[i] for i in rows], [texts[i] for i in rows], wanted)
            for name, values in batch.items():
                if name not in result:
                    result[name] = np.empty((len(texts), *values.shape[1:]), np.float32)
                result[name][rows] = values
            bar.update(len(rows))

    broken = [name for name, values in result.items() if not np.isfinite(values).all()]
    if broken:
        raise EmolabError(
            f"activations of {model.name} are not finite at {', '.join(broken)} in {model.dtype}; "
            "load it with dtype='bfloat16' or 'float32'"
        )
    if "head" in sites:
        _check_heads(model, result["head"], result["attn"])
    index = responses[["query_id", "emotion", "condition"]].assign(n_tokens=lengths).reset_index(drop=True)
    means = ResponseMeans(index, {site: result[site] for site in sites}, result["resid_norm"], meta)
    if out is not None:
        means.save(Path(out) / "response_means.safetensors")
    return means


def check_sites(sites: Sequence[str]) -> tuple[str, ...]:
    """The sites in their fixed order; EmolabError for an unknown or no site."""
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    unknown = [site for site in sites if site not in SITES]
    if unknown or not sites:
        raise EmolabError(
            f"unknown site {unknown[0]!r}; choose from {', '.join(SITES)}" if unknown else "no site given"
        )
    return tuple(site for site in SITES if site in sites)


def corpus_hash(responses: pd.DataFrame) -> str:
    """Hash of what the model reads and how it is grouped: query ids, conditions, prompts, texts."""
    return digest(_checked(responses)[["query_id", "condition", "prompt", "text"]].to_numpy().ravel().tolist())


def _template_hash(responses: pd.DataFrame) -> str:
    """Hash of the prompts with their queries taken out: the wording around them."""
    pairs = zip(responses["prompt"], responses["query"], strict=True)
    return digest(sorted({prompt.replace(query, "{query}") if query else prompt for prompt, query in pairs}))


def _checked(responses: pd.DataFrame) -> pd.DataFrame:
    missing = [c for c in ("condition", "text") if not isinstance(responses, pd.DataFrame) or c not in responses]
    if missing:
        raise EmolabError(f"responses lack {', '.join(missing)}; use collect_responses or responses_from_texts")
    bad = [text for text in responses["text"] if not isinstance(text, str)]
    if bad or responses.empty:
        raise EmolabError(f"responses hold {bad[0]!r} where a text belongs" if bad else "responses are empty")
    default = {"prompt": "", "query": "", "emotion": responses["condition"]}
    default["query_id"] = [f"r-{i:04d}" for i in range(1, len(responses) + 1)]
    return responses.assign(**{c: v for c, v in default.items() if c not in responses}).reset_index(drop=True)


def _lengths(model: Model, texts: list[str]) -> list[int]:
    return [len(ids) for ids in model.tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _with_tokens(responses: pd.DataFrame, lengths: list[int]) -> tuple[pd.DataFrame, list[int]]:
    """The responses that hold at least one token; EmolabError if a condition loses all of its texts."""
    kept = np.array(lengths) > 0
    if not kept.all():
        lost = [c for c in order(responses["condition"]) if not kept[responses["condition"] == c].any()]
        if lost:
            raise EmolabError(f"no text under {', '.join(lost)} holds a token; a condition needs at least one")
        warnings.warn(f"{(~kept).sum()} of {len(kept)} responses hold no token and were left out", stacklevel=3)
    return responses[kept].reset_index(drop=True), [n for n in lengths if n]


def _batch_means(model: Model, prompts: list[str], texts: list[str], sites: set[str]) -> dict[str, np.ndarray]:
    """One forward pass: {site: [batch, layer, ...]} and `resid_norm` [batch, layer]."""
    batch = models.encode(model, prompts, texts)
    ids, attention = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
    exact = torch.float32 if ids.device.type == "mps" else torch.float64  # MPS has no float64
    start = int(batch.response_mask.any(0).nonzero()[0])  # nothing counts left of here
    mask = batch.response_mask[:, start:].to(model.device)
    weight = mask.to(exact) / mask.sum(1, keepdim=True)
    taken: dict[tuple[str, int], Tensor] = {}
    scratch: dict[tuple, Tensor] = {}

    def own(x: Tensor) -> Tensor:
        """The tokens that count, zero elsewhere."""
        keep = mask.to(x.device).reshape(*mask.shape, *[1] * (x.ndim - 2))
        return torch.where(keep, x[:, start:], 0).to(exact)

    def mean(x: Tensor) -> Tensor:
        return torch.bmm(weight[:, None].to(x.device), x.flatten(2)).reshape(len(x), *x.shape[2:])

    def exact_mean(x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, the values it was taken of). Weight 0 leaves out what does not count, unless that is infinite."""
        part = x[:, start:]
        key = (part.shape, part.device)
        if key not in scratch:  # one for all layers: fresh memory for each would cost more than the sums
            scratch[key] = torch.empty(part.shape, dtype=exact, device=part.device)
        values = scratch[key].copy_(part)
        found = mean(values)
        if not found.isfinite().all():
            values = own(x)
            found = mean(values)
        return found, values

    def plain(site: str, layer: int):
        def take(x, hook):
            found, values = exact_mean(x)
            taken[site, layer] = found.float().cpu()
            if site == "resid":
                taken["resid_norm", layer] = mean(values.norm(dim=-1)[..., None])[:, 0].float().cpu()

        return take

    def normed_heads(layer: int, gain: Tensor):
        """Attention's output is normed: out -> out * scale * gain, scale by token. Gives each token's z that scale."""
        held: dict[str, Tensor] = {}

        def take_z(x, hook):
            held["z"] = own(x)

        def take_raw(x, hook):
            held["raw"] = own(x) * gain.to(x.device, exact)

        def take_normed(x, hook):
            raw = held.pop("raw")
            scale = (own(x) * raw).sum(-1) / (raw * raw).sum(-1).clamp_min(torch.finfo(exact).tiny)
            taken["head", layer] = mean(held.pop("z") * scale[..., None, None]).float().cpu()

        return take_z, take_raw, take_normed

    hooks = []
    for site in sorted({*sites, "resid"}):
        for layer, name in enumerate(models.site_hooks(model, site)):
            block = model.bridge.blocks[layer]
            if site == "head" and attention_norm(block) is not None:
                names = name, f"blocks.{layer}.attn.o.hook_out", models.site_hooks(model, "attn")[layer]
                hooks += zip(names, normed_heads(layer, attention_gain(block)), strict=True)
            else:
                hooks.append((name, plain(site, layer)))
    with torch.inference_mode(), model.bridge.hooks(fwd_hooks=hooks):
        model.bridge(ids, attention_mask=attention, logits_to_keep=1, use_cache=False)
    result = {}
    for name in (*sites, "resid_norm"):
        layers = [taken.get((name, layer)) for layer in range(model.n_layers)]
        if any(values is None for values in layers):
            raise EmolabError(f"{model.name} gave no activations at {name}; measure the other sites only")
        width = max(x.shape[-1] for x in layers)  # heads may be of different width (Gemma 4): filled up with zeros
        result[name] = torch.stack([torch.nn.functional.pad(x, (0, width - x.shape[-1])) for x in layers], 1).numpy()
    return result


def _check_heads(model: Model, z: np.ndarray, attn: np.ndarray) -> None:
    """Heads must sum to `attn` up to one constant a layer (the bias): refuses architectures that we misread."""
    W_O = output_weights(model).numpy()
    for layer in range(model.n_layers):
        rest = attn[:, layer] - np.einsum("rhd,hdm->rm", z[:, layer], W_O[layer])
        off = np.abs(rest - rest.mean(0)).max() / max(np.abs(attn[:, layer]).max(), 1e-12)
        if off > _HEAD_TOLERANCE.get(model.dtype, 5e-2):
            raise EmolabError(
                f"heads of layer {layer} do not add up to the attention output of {type(model.hf).__name__} "
                f"(off by {off:.1%}); measure resid, attn or mlp, without 'head'"
            )
