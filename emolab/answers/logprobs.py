"""How likely a model finds given texts: what it predicts at their tokens, teacher forced.

Scores ask about many texts behind few prompts. Such a prompt is read once and its keys and values are handed to all of
its texts, as `emolab.answers.decoding` does when it writes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from emolab.answers.decoding import steered_early
from emolab.answers.generation import edits_of, per_row
from emolab.base.errors import EmolabError, need_texts
from emolab.models.finite import need_finite
from emolab.models.hooks import forward
from emolab.models.memory import halving
from emolab.models.model import Model
from emolab.models.prompts import Batch, check_context, encode, plan_batches, prompt_ids, text_ids
from emolab.models.sharing import begin, new_cache, pays, read_on, read_prompts
from emolab.models.sites import bridge_has_hooks
from emolab.steering.edits import hooked
from emolab.steering.steering import Steering

_CACHED = 8  # a row's prompt and text, in the cache, take this much less of a batch than text that is computed


def token_logprobs(
    model: Model,
    prompts: Sequence[str],
    texts: Sequence[str],
    *,
    steering: Steering | list[Steering | None] | None = None,
    batch_size: int | None = None,
) -> list[Float[np.ndarray, " token"]]:
    """Natural-log probability of every token of each text after its complete prompt (`render_prompts`), teacher forced.

    >>> logprobs = token_logprobs(model, render_prompts(model, ["Tell me about the park."]), ["It was quiet."])
    >>> perplexity = np.exp(-logprobs[0].mean())

    Unsteered unless steering says otherwise or the bridge carries hooks (inside `steered`, where "generated" means the
    last position of the whole text only: pass steering= here instead). A text without tokens gives an empty array; a
    token that nothing precedes, NaN. Raises EmolabError as `generate` and `encode` do.
    """
    prompts, texts = need_texts("prompts", prompts), need_texts("texts", texts)
    if len(prompts) != len(texts):
        raise EmolabError(f"{len(prompts)} prompts and {len(texts)} texts; expected as many of both")
    rows = per_row(model, steering, len(prompts))
    ids = text_ids(model, texts)
    out: list[np.ndarray] = [np.empty(0)] * len(prompts)

    def read(index: list[int]) -> list[np.ndarray]:
        steerings = [rows[i] for i in index] if rows else []
        predicted = text_logits(model, [prompts[i] for i in index], [texts[i] for i in index], steerings)
        return [_picked(logits, ids[i]) for logits, i in zip(predicted, index, strict=True)]

    for index, values in halving(read, plan_texts(model, prompts, texts, batch_size)):
        need_finite(model, values, "the log-probabilities", prompt=prompts[index[0]])
        for i, row in zip(index, values, strict=True):
            out[i] = _of_all(row, len(ids[i]))
    return out


def _of_all(values: Float[np.ndarray, " token"], n_tokens: int) -> Float[np.ndarray, " token"]:
    """A value for each token; NaN for the first of a text at the very start of its row, which nothing predicts."""
    return np.concatenate([np.full(n_tokens - len(values), np.nan), values])


def _picked(logits: Float[Tensor, "token vocab"], ids: list[int]) -> Float[np.ndarray, " token"]:
    """The log-probability of each token, of one text at a time: a whole batch's in float32 would be a second copy."""
    logits = logits.float()
    targets = torch.tensor(ids[len(ids) - len(logits) :], dtype=torch.long, device=logits.device)
    return (logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)).double().cpu().numpy()


def text_logits(
    model: Model, prompts: list[str], texts: list[str], steerings: list[Steering | None]
) -> list[Float[Tensor, "token vocab"]]:
    """The logits that predict each text's tokens, of one batch, in the model's dtype.

    steerings: empty, or one per row. A text that nothing precedes has one row of logits less than tokens.
    """
    with torch.inference_mode():
        logits = _behind_shared(model, prompts, texts, steerings)
        return _in_one_pass(model, prompts, texts, steerings) if logits is None else logits


def _in_one_pass(
    model: Model, prompts: list[str], texts: list[str], steerings: list[Steering | None]
) -> list[Float[Tensor, "token vocab"]]:
    batch = encode(model, prompts, texts)
    n_text = batch.response_mask.sum(1).tolist()
    n_all = batch.attention_mask.sum(1).tolist()
    keep = min(max(n_text) + 1, batch.input_ids.shape[1])
    edits, plain = edits_of(model, steerings, batch, cached=False)
    begun = begin(model, batch) if plain and not steered_early(steerings) else None
    if begun is None:
        with hooked(model, edits, plain=plain) as runner:
            logits = forward(model, runner, batch, keep)[:, :-1]
    else:
        edits, _ = edits_of(model, steerings, batch, cached=True)
        logits = _steered_on(model, edits, *begun, keep)[:, :-1]
    n_predicted = [text - (text == whole) for text, whole in zip(n_text, n_all, strict=True)]
    return [row[len(row) - n :] for row, n in zip(logits, n_predicted, strict=True)]


def _behind_shared(
    model: Model, prompts: list[str], texts: list[str], steerings: list[Steering | None]
) -> list[Float[Tensor, "token vocab"]] | None:
    """The same with each prompt read once; None where that would not pay, or not be the same.

    The prompts are padded on the left, as in generation, and the texts on the right, where no token looks.
    """
    unique = list(dict.fromkeys(prompts))
    if steered_early(steerings) or 2 * len(unique) > len(prompts):
        return None
    if not pays(min(map(len, prompt_ids(model, unique)))):
        return None
    batch = encode(model, prompts)
    edits, plain = edits_of(model, steerings, batch, cached=True)
    past = new_cache(model) if plain else None
    if past is None:
        return None
    leads = encode(model, unique)
    leads, past = begin(model, leads) or (leads, past)
    rows = torch.tensor([unique.index(prompt) for prompt in prompts], device=model.device)
    read_prompts(model, past, leads, rows)
    # From the last token of the prompt to the last but one of the text: the tokens that predict the text's.
    ids = text_ids(model, texts)
    size = max(1, *map(len, ids))
    check_context(model, batch.prompt_len + size)
    last = batch.input_ids[:, -1].tolist()
    predicting = [([token, *row[:-1]] + [token] * size)[:size] for token, row in zip(last, ids, strict=True)]
    looked_at = [[1] * max(1, len(row)) + [0] * (size - max(1, len(row))) for row in ids]
    inputs = torch.cat([leads.input_ids[rows, :-1], torch.tensor(predicting, device=model.device)], 1)
    mask = torch.cat([leads.attention_mask[rows, :-1], torch.tensor(looked_at, device=model.device)], 1)
    logits = _steered_on(model, edits, replace(batch, input_ids=inputs, attention_mask=mask), past, size)
    return [row[: len(text)] for row, text in zip(logits, ids, strict=True)]


def _steered_on(model: Model, edits: dict, batch: Batch, past: DynamicCache, keep: int) -> Tensor:
    """The logits of the batch's last `keep` tokens, read on from its cache under these edits."""
    for edit in edits.values():
        edit.seen = past.get_seq_length()
    with hooked(model, edits, plain=True) as runner:
        return read_on(runner, batch, past, keep).logits[:, -keep:]


def plan_texts(
    model: Model, prompts: Sequence[str], texts: Sequence[str], batch_size: int | None = None
) -> list[list[int]]:
    """Row numbers in batches: texts behind one prompt together, the others by length (`plan_batches`).

    What fits one batch of the given size is one batch, in the order given: so a part of a plan is read as in the whole.
    """
    if not len(prompts) or (batch_size is not None and len(prompts) <= batch_size):
        return [list(range(len(prompts)))] if len(prompts) else []
    n_prompt = [len(ids) for ids in prompt_ids(model, prompts)]
    n_text = [len(ids) for ids in text_ids(model, texts)]
    n_all = [a + b for a, b in zip(n_prompt, n_text, strict=True)]
    check_context(model, max(n_all))
    if bridge_has_hooks(model):  # they may be one per row: keep the given order
        return plan_batches(model, [max(n_all)] * len(n_all), batch_size, logits=True)
    count = Counter(prompts)
    shared = [i for i, prompt in enumerate(prompts) if count[prompt] > 1 and pays(n_prompt[i])]
    shared.sort(key=lambda i: (n_prompt[i], prompts[i], n_text[i]))
    single = sorted(set(range(len(prompts))) - set(shared))
    # Of texts behind shared prompts only these are computed, but the cache holds both.
    longest = max((max(n_text[i] + 1, n_all[i] // _CACHED) for i in shared), default=0)
    plan = plan_batches(model, [longest] * len(shared), batch_size, logits=True)
    rest = plan_batches(model, [n_all[i] for i in single], batch_size, logits=True)
    return [[shared[k] for k in index] for index in plan] + [[single[k] for k in index] for index in rest]


def next_token_kl(
    model: Model,
    prompts: Sequence[str],
    texts: Sequence[str],
    *,
    steering: Steering | list[Steering | None] | None = None,
    other: Model | None = None,
    other_prompts: Sequence[str] | None = None,
    held: dict[tuple[str, str], Tensor] | None = None,
) -> list[Float[np.ndarray, " token"]]:
    """KL(changed || plain) in nats at every token of each text, teacher forced: one array a text.

    >>> asked, texts = ["How was it?", "And then?"], ["It was quiet.", "We went home."]
    >>> prompts = render_prompts(model, asked)
    >>> next_token_kl(model, prompts, texts, steering=Steering(vectors, {"joy": 1.0}))     # of steering
    >>> next_token_kl(model, prompts, texts, other=joyful)              # of fine-tuning    # doctest: +SKIP
    >>> next_token_kl(model, prompts, texts, other_prompts=render_prompts(model, asked, "joy"))   # an instruction

    Plain is `model` after `prompts`; changed is `other` (default the same model) under `steering` after `other_prompts`
    (default the same ones), all complete (`render_prompts`). texts: the plain model's own answers to held-back queries,
    so that both are asked about text natural to the plain one. Of the two directions this is the one that is large
    where the changed model would write what the plain one never does, as broken text is; published iso-KL calibrations
    use it, too. held: {} at first, keeps the plain model's logits for further calls about the same texts. A text
    without tokens gives an empty array, a token that nothing precedes NaN. Hooks on the bridge (inside `steered`) count
    on both sides. Raises EmolabError for lists of different length, models of different vocabulary, and as `generate`
    does.
    """
    changed = other or model
    prompts, texts = list(prompts), list(texts)
    changed_prompts = prompts if other_prompts is None else list(other_prompts)
    if not len(prompts) == len(texts) == len(changed_prompts):
        sizes = f"{len(prompts)} prompts, {len(texts)} texts and {len(changed_prompts)} other_prompts"
        raise EmolabError(f"{sizes}; expected as many of each")
    if changed.bridge.cfg.d_vocab != model.bridge.cfg.d_vocab:
        raise EmolabError(f"{model.name!r} and {changed.name!r} have different vocabularies; no KL between them")
    rows = per_row(changed, steering, len(prompts))
    n_tokens = [len(ids) for ids in text_ids(model, texts)]
    longer = [max(pair, key=len) for pair in zip(prompts, changed_prompts, strict=True)]
    out: list[np.ndarray] = [np.empty(0)] * len(prompts)
    for index in plan_texts(model, longer, texts):
        plain = {} if held is None else held
        asked = dict.fromkeys((prompts[i], texts[i]) for i in index)  # many settings are asked about the same texts
        pairs = [pair for pair in asked if pair not in plain]
        if pairs:
            unsteered = text_logits(model, [prompt for prompt, _ in pairs], [text for _, text in pairs], [])
            plain.update(zip(pairs, unsteered, strict=True))
        steerings = [rows[i] for i in index] if rows else []
        new = text_logits(changed, [changed_prompts[i] for i in index], [texts[i] for i in index], steerings)
        for i, p in zip(index, new, strict=True):
            q = plain[prompts[i], texts[i]]
            n = min(len(p), len(q))
            p, q = p[len(p) - n :].float().log_softmax(-1), q[len(q) - n :].float().log_softmax(-1)
            kl = (p.exp() * (p - q)).sum(-1).clamp_min(0)
            need_finite(changed, kl, "the log-probabilities", prompt=changed_prompts[i])
            out[i] = _of_all(kl.double().cpu().numpy(), n_tokens[i])
    return out


def p95_kl(kls: Sequence[Float[np.ndarray, " token"]]) -> float:
    """The 95th percentile over all tokens of all texts, in nats; NaN where there is none.

    Not the mean: a text breaks at its worst tokens, and most tokens of any text are hardly moved.

    >>> p95_kl([np.array([0.0, 1.0]), np.array([2.0])])
    1.9
    """
    values = np.concatenate([np.asarray(x, dtype=float) for x in kls]) if len(kls) else np.empty(0)
    values = values[~np.isnan(values)]
    return float(np.quantile(values, 0.95)) if len(values) else float("nan")
