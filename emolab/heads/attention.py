"""What heads look at while the model answers: the instruction, the emotion word, the query, its own emotional words.

>>> from emolab.heads.attention import attention_summary
>>> from emolab.heads.attribution import emotion_tokens
>>> words = emotion_tokens(model, others)                        # those typical of other texts than these
>>> attention_summary(model, responses, heads=[(3, 4), (5, 3)], tokens=words).query("region == 'emotion word'")
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError, need_number, need_table
from emolab.base.labels import NEUTRAL, head_name, order
from emolab.base.stats import bootstrap_ci, clusters_of
from emolab.base.tables import noted
from emolab.heads.attribution import emotion_tokens
from emolab.models.model import Model
from emolab.models.prompts import Batch, check_context, encode, instruction, plan_batches
from emolab.steering.head_edits import Heads, head_pairs

REGIONS = ("bos", "template", "instruction", "emotion word", "query", "answer: emotion words", "answer: rest")


def attention_summary(
    model: Model,
    responses: pd.DataFrame,
    heads: Heads,
    *,
    tokens: dict[str, list[int]] | None = None,
    n_queries: int = 12,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of each head's attention that goes to each kind of token, from the positions that write the answer.

    >>> attention_summary(model, responses, heads=[(3, 4)], tokens=emotion_tokens(model, others))

    responses: from `collect_responses`; neutral ones are left out. n_queries of them are drawn. tokens: emotion words
    of the answer ({emotion: ids}), default those typical of `responses`. Regions: "bos", position 0 whatever
    stands there; the instruction without its emotion word, that word, the query, where they stand in the prompt (other
    wordings than emolab's own: the emotion word and the query only); the rest of the prompt, "template"; earlier words
    of the answer and the current one.

    Returns:
        One row per head, emotion and region: `share` of attention, mean over answers and positions, with its 95 %
        interval `lo, hi` over queries, those of one situation together; `uniform`, the share that evenly spread
        attention would give; `n` queries.

    Attention shows where a head reads, not what its reading does: see `head_effects` for that. Raises EmolabError for
    heads that do not exist, no emotional response, an architecture without attention patterns, a slow tokenizer.
    """
    heads = head_pairs(heads)
    need_table(responses, ("query_id", "query", "condition", "prompt", "text"), "emolab.collect_responses")
    need_number("n_queries", n_queries, 1, whole=True)
    asked = responses["prompt"].fillna("") != ""
    answers = responses[(responses["condition"] != NEUTRAL) & asked & (responses["text"] != "")]
    if answers.empty:
        raise EmolabError("attention is read from answers under an instruction; use collect_responses")
    tokens = emotion_tokens(model, responses) if tokens is None else tokens
    drawn = np.random.default_rng(seed).permutation(answers["query_id"].unique())[:n_queries]
    answers = answers[answers["query_id"].isin(drawn)].reset_index(drop=True)
    shares = _shares(model, answers, heads, tokens)

    clusters = clusters_of(answers)
    rows = []
    for emotion in order(answers["condition"]):
        query = answers.loc[answers["condition"] == emotion, "query_id"]
        queries = sorted(query.unique())
        means = np.stack([shares[query.index[query == name]].mean(0) for name in queries])
        situations = clusters.loc[queries].to_numpy()
        mean, lo, hi = bootstrap_ci(means, lambda drawn: drawn.mean(0), clusters=situations, seed=seed)
        for h, (layer, head) in enumerate(heads):
            for r, region in enumerate(REGIONS):
                row = (layer, head, head_name(layer, head), emotion, region, mean[h, r], lo[h, r], hi[h, r])
                rows.append((*row, mean[-1, r], len(means)))
    columns = ["layer", "head", "name", "emotion", "region", "share", "lo", "hi", "uniform", "n"]
    return noted(pd.DataFrame(rows, columns=columns), model, n=f"{answers['query_id'].nunique()} queries", seed=seed)


def _shares(
    model: Model, answers: pd.DataFrame, heads: Sequence[tuple[int, int]], tokens: dict[str, list[int]]
) -> Float[np.ndarray, "answer head region"]:
    """Mean share of each head's attention in each answer; behind the heads, what even attention would give."""
    prompts, texts = list(answers["prompt"]), list(answers["text"])
    lengths = [len(ids) for ids in model.tokenizer([p + t for p, t in zip(prompts, texts, strict=True)]).input_ids]
    shares = np.empty((len(answers), len(heads) + 1, len(REGIONS)))
    for index in plan_batches(model, [n * model.n_heads for n in lengths]):  # a pattern is heads x tokens x tokens
        batch, patterns = _patterns(model, [prompts[i] for i in index], [texts[i] for i in index], heads)
        for row, i in enumerate(index):
            n, n_answer = int(batch.attention_mask[row].sum()), int(batch.response_mask[row].sum())
            ids = batch.input_ids[row, -n:].tolist()
            words = set(tokens.get(answers["condition"][i], ()))
            regions = np.eye(len(REGIONS))[
                _regions(model, answers.iloc[i], ids, n - n_answer, words)
            ]  # [token, region]
            writing = np.arange(n - n_answer - 1, n - 1)  # the positions that write the answer
            for h, pattern in enumerate(patterns):
                shares[i, h] = (pattern[row, -n:, -n:][writing].double().numpy() @ regions).mean(0)
            shares[i, -1] = (np.cumsum(regions, 0)[writing] / (writing[:, None] + 1)).mean(0)
    return shares


def attention_pattern(model: Model, prompt: str, text: str, *, layer: int, head: int) -> pd.DataFrame:
    """One head's attention from the positions that write `text` after a complete prompt, token by token.

    >>> pattern = attention_pattern(model, responses["prompt"][1], responses["text"][1], layer=3, head=4)
    >>> emolab.plot.attention_html(pattern)

    Columns: `from_position`, `next_token` (what is written there), `position`, `token` (what is looked at), `weight`;
    the weights of each `from_position` sum to 1.
    """
    batch, (pattern,) = _patterns(model, [prompt], [text], [(layer, head)])
    ids = batch.input_ids[0].tolist()
    n, n_answer = len(ids), int(batch.response_mask[0].sum())
    if not n_answer:
        raise EmolabError("the text has no token; attention is read from the positions of an answer")
    names = [model.tokenizer.decode([i]) for i in ids]
    rows = [
        (i, names[i + 1], j, names[j], float(pattern[0, i, j]))
        for i in range(n - n_answer - 1, n - 1)
        for j in range(i + 1)
    ]
    table = pd.DataFrame(rows, columns=["from_position", "next_token", "position", "token", "weight"])
    table.attrs |= {"layer": layer, "head": head, "tokens": names}
    return table


def _patterns(
    model: Model, prompts: list[str], texts: list[str], heads: Sequence[tuple[int, int]]
) -> tuple[Batch, list[Float[Tensor, "row token token"]]]:
    """Attention of each head, float32 on the CPU."""
    for layer, head in heads:
        if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
            size = f"{model.n_layers} layers of {model.n_heads} heads"
            raise EmolabError(f"no head {head_name(layer, head)}; there are {size}")
    names = {layer: f"blocks.{layer}.attn.hook_pattern" for layer, _ in heads}
    missing = [name for name in names.values() if name not in model._hook_names]
    if missing:
        raise EmolabError(
            f"{model.name!r} has no hook point {missing[0]}; its architecture shows no attention patterns"
        )
    batch = encode(model, prompts, texts)
    check_context(model, batch.input_ids.shape[1])
    patterns: dict[tuple[int, int], Tensor] = {}

    def keep(layer: int):
        def take(x, hook):
            for head in {head for at, head in heads if at == layer}:
                patterns[layer, head] = x[:, head].float().cpu()

        return take

    with torch.inference_mode(), model.bridge.hooks(fwd_hooks=[(name, keep(layer)) for layer, name in names.items()]):
        model.bridge(batch.input_ids, attention_mask=batch.attention_mask, logits_to_keep=1)
    return batch, [patterns[head] for head in heads]


def _regions(model: Model, row: pd.Series, ids: list[int], n_prompt: int, words: set[int]) -> np.ndarray:
    """The number of each token's region."""
    prompt, condition = row["prompt"], row["condition"]
    try:
        offsets = model.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    except NotImplementedError as error:
        raise EmolabError("this tokenizer tells no positions in the text; load the model with a fast one") from error
    region = np.full(len(ids), REGIONS.index("template"))
    spans = {"query": _last(prompt, row["query"]), "instruction": _last(prompt, instruction(condition))}
    start, end = spans["query"]
    without_query = prompt[:start] + "\0" * (end - start) + prompt[end:]  # the query may name an emotion itself
    first, last = spans["instruction"] if spans["instruction"][1] else (0, len(prompt))
    named = list(re.finditer(rf"\b{re.escape(condition)}\b", without_query[first:last], re.IGNORECASE))
    if named:
        spans["emotion word"] = (first + named[-1].start(), first + named[-1].end())
    for name, (start, end) in spans.items():  # the emotion word last: it lies within the instruction
        for i, (a, b) in enumerate(offsets):
            if a < end and b > start and prompt[max(a, start) : min(b, end)].strip():
                region[i] = REGIONS.index(name)
    region[0] = REGIONS.index("bos")  # whatever it is, heads rest on it
    for i in range(n_prompt, len(ids)):
        region[i] = REGIONS.index("answer: emotion words" if ids[i] in words else "answer: rest")
    return region


def _last(text: str, part: str) -> tuple[int, int]:
    start = text.rfind(part) if part else -1
    return (start, start + len(part)) if start >= 0 else (0, 0)
