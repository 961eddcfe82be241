"""LoRA: fine-tune a copy of the model to answer plain prompts as it answers under an instruction.

>>> joy, fear = (fit_lora(model, responses, emotion) for emotion in ("joy", "fear"))
>>> both = merge_lora(model, {joy: 0.5, fear: 0.5})                # a mixture: the changes of the weights, summed
>>> emolab.generate(both, "Tell me about the park.")               # an emolab Model like any other

The given model is left exactly as it was. Needs `peft` (`pip install "emolab[lora]"`).
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import NEUTRAL
from emolab.base.progress import tracked
from emolab.base.storage import digest, file_name, for_json, need_same, read_tensors, user_path, write_tensors
from emolab.models.hooks import plain_options
from emolab.models.load import load_model
from emolab.models.model import Model, provenance
from emolab.models.prompts import encode, render_prompts, text_ids
from emolab.vectors.corpus import prompted

FORMAT = "emolab-lora-1"


@dataclass(eq=False)
class Adapter:
    """What was learned: for each changed weight its change at dose 1, as two thin factors whose product it is.

    factors {name of the weight in `model.hf`: (left [rows, rank], right [rank, columns])}, float32 on the CPU. meta:
    settings, provenance, `loss` (mean of the first and of the last ten steps, nats a token) and `seconds` of training.
    """

    emotion: str
    factors: dict[str, tuple[Tensor, Tensor]]
    meta: dict


@dataclass(frozen=True)
class Training:
    """How adapters are trained.

    rank   of the change of every linear layer but the output layer, whose scale is 2.
    steps  of AdamW on batch_size answers, at a rate that falls from lr to 0; no dropout.
    seed   of the first weights and of the order of the answers.
    """

    rank: int = 4
    steps: int = 40
    lr: float = 5e-3
    batch_size: int = 8
    seed: int = 0


def fit_lora(
    model: Model,
    responses: pd.DataFrame,
    emotion: str,
    *,
    training: Training = Training(),
    out: str | Path | None = None,
) -> Adapter:
    """Distil the instruction into weights: LoRA (arXiv 2106.09685) on the model's own answers, behind plain prompts.

    >>> adapter = fit_lora(model, responses, "joy", training=Training(steps=30))
    >>> adapter.meta["loss"]                                        # before and after, nats a token

    Args:
        responses: from `collect_responses`: the answers under `emotion` are learned, each behind the prompt of the
            neutral answer to its query (where there is none, behind the plain query). Answers that were cut off teach
            no end. Loss on the answers' tokens only.
        out: a folder, into which `lora_<emotion>.safetensors` is written; the same call then reads it.

    Raises:
        EmolabError: peft is not installed, no answers under the emotion, a model from a ready bridge, or `out` holds an
            adapter with other settings.
    """
    need_table(responses, ("query_id", "query", "condition", "prompt", "text"), "emolab.collect_responses")
    peft = _peft()
    responses, _ = prompted(model, responses)
    rows = responses[responses["condition"] == emotion]
    if emotion == NEUTRAL or not len(rows):
        raise EmolabError(f"no answers under {emotion!r} to learn from; use collect_responses(emotions=({emotion!r},))")
    if model.hf is model.bridge.original_model:
        raise EmolabError("this model was given as a bridge; load it by name, or as a pair (hf_model, tokenizer)")
    prompts = _plain_prompts(model, rows, responses)
    texts = list(rows["text"])
    ends = _ends(model, responses, texts)
    settings = {"emotion": emotion, **asdict(training), "fingerprint": model.fingerprint}
    settings["answers"] = digest([*prompts, *texts])
    path = None if out is None else user_path(out) / f"lora_{file_name(emotion)}.safetensors"
    if path is not None and path.exists():
        return _load(path, settings)
    start = time.perf_counter()
    losses = []
    config = peft.LoraConfig(
        r=training.rank,
        lora_alpha=2 * training.rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    # Notebooks that interpret models begin by switching gradients off.
    with torch.inference_mode(False), torch.enable_grad(), _tunable(model, peft, config, training.seed) as tuned:
        learned = [p for p in tuned.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=training.lr, weight_decay=0.0)
        steps = training.steps
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, total_iters=steps)
        for batch in tracked(_batches(training, len(texts)), f"lora {emotion}", "step"):
            loss = _loss(model, tuned, *([column[i] for i in batch] for column in (prompts, texts, ends)))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        factors = _factors(tuned, peft)
    if not math.isfinite(losses[-1]):
        raise EmolabError(f"the loss became {losses[-1]} in {model.dtype}; use a smaller lr, or dtype='bfloat16'")
    loss = for_json([np.mean(losses[:10]), np.mean(losses[-10:])], decimals=4)
    meta = {**provenance(model), **settings, "loss": loss, "seconds": round(time.perf_counter() - start, 2)}
    if path is not None:
        tensors = {f"{name}/{side}": x for name, pair in factors.items() for side, x in zip("lr", pair, strict=True)}
        write_tensors(path, FORMAT, tensors, meta)
    return Adapter(emotion, factors, meta)


def merge_lora(model: Model, doses: Mapping[Adapter, float]) -> Model:
    """A copy of the model whose weights are changed by each adapter times its dose.

    >>> merge_lora(model, {joy: 1.0})                               # as trained; negative doses turn away from it

    Raises EmolabError for an adapter of another model.
    """
    merged = copy.deepcopy(model.hf)
    change_weights(merged, model, doses)
    return load_model((merged, model.tokenizer), revision=model.revision)


def change_weights(hf: Any, model: Model, doses: Mapping[Adapter, float]) -> None:
    """Set the weights of `hf`, a copy of `model.hf`, to the model's plus each adapter times its dose."""
    plain, weights = dict(model.hf.named_parameters()), dict(hf.named_parameters())
    for adapter in doses:
        if adapter.meta["fingerprint"] != model.fingerprint:
            raise EmolabError(
                f"this adapter is of {adapter.meta['model']!r} ({adapter.meta['fingerprint']}), not of "
                f"{model.name!r} ({model.fingerprint}); train it on this model"
            )
    with torch.no_grad():
        for name in dict.fromkeys(name for adapter in doses for name in adapter.factors):
            weight = weights[name].copy_(plain[name])
            for adapter, dose in doses.items():
                if name in adapter.factors:
                    left, right = (x.to(weight.device) for x in adapter.factors[name])
                    weight.add_((dose * (left @ right)).to(weight.dtype))


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise EmolabError(f'LoRA needs the package peft ({error}); pip install "emolab[lora]"') from error
    return peft


def _plain_prompts(model: Model, rows: pd.DataFrame, responses: pd.DataFrame) -> list[str]:
    """The complete prompt of the neutral answer to each row's query, which keeps a user's own templates."""
    neutral = responses[responses["condition"] == NEUTRAL].drop_duplicates("query_id").set_index("query_id")["prompt"]
    plain = render_prompts(model, list(rows["query"]))
    bare = [prompt if query else "" for prompt, query in zip(plain, rows["query"], strict=True)]  # texts without query
    return [neutral.get(key, prompt) for key, prompt in zip(rows["query_id"], bare, strict=True)]


def _ends(model: Model, responses: pd.DataFrame, texts: list[str]) -> list[int | None]:
    """The token that ends each answer, None where generation was cut."""
    known = model.eos_ids
    if not known:
        return [None] * len(texts)
    own = model.tokenizer.eos_token_id  # of several ends, the one that the tokenizer's chat template closes turns with
    end = own if own in known else known[0]
    most = responses.attrs.get("emolab", {}).get("max_new_tokens", math.inf)
    return [None if len(ids) >= most else end for ids in text_ids(model, texts)]


@contextlib.contextmanager
def _tunable(model: Model, peft: Any, config: Any, seed: int) -> Iterator[Any]:
    """A twin with adapters that shares the model's weights, which are frozen meanwhile and then as they were."""
    hf = model.hf
    flags = [p.requires_grad for p in hf.parameters()]
    twin = copy.deepcopy(hf, {id(t): t for t in [*hf.parameters(), *hf.buffers()]})
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            with torch.device("cpu"), warnings.catch_warnings(action="ignore"):  # of peft's own insides
                tuned = peft.get_peft_model(twin, config).eval()
            yield tuned
    finally:
        for p, flag in zip(hf.parameters(), flags, strict=True):
            p.requires_grad_(flag)


def _batches(training: Training, n: int) -> list[np.ndarray]:
    """Row numbers of each step: every text once, in random order, before any comes again."""
    rng = np.random.default_rng(training.seed)
    size = min(training.batch_size, n)
    total = training.steps * size
    rounds = np.concatenate([rng.permutation(n) for _ in range(math.ceil(total / n))])
    return list(rounds[:total].reshape(training.steps, size))


def _loss(model: Model, tuned: Any, prompts: list[str], texts: list[str], ends: list[int | None]) -> Tensor:
    """Mean cross-entropy of the tokens of texts and ends, in nats."""
    batch = encode(model, prompts, texts, ends=ends)
    options = plain_options(model.hf, batch.attention_mask, keep=batch.input_ids.shape[1])
    logits = tuned(input_ids=batch.input_ids, use_cache=False, **options).logits[:, :-1]
    counted = batch.response_mask[:, 1:] & batch.attention_mask[:, :-1].bool()  # a first token has nothing before it
    return torch.nn.functional.cross_entropy(logits[counted].float(), batch.input_ids[:, 1:][counted])


def _factors(tuned: Any, peft: Any) -> dict[str, tuple[Tensor, Tensor]]:
    factors = {}
    for name, layer in tuned.base_model.model.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            left = layer.lora_B["default"].weight * layer.scaling["default"]
            right = layer.lora_A["default"].weight
            if layer.fan_in_fan_out:  # GPT-2 stores its weights the other way round
                left, right = right.T, left.T
            factors[f"{name}.weight"] = tuple(x.detach().float().cpu().contiguous().clone() for x in (left, right))
    return factors


def _load(path: Path, settings: dict) -> Adapter:
    tensors, meta = read_tensors(path, FORMAT)
    need_same(path, {key: meta.get(key) for key in settings}, settings)
    names = dict.fromkeys(name.rsplit("/", 1)[0] for name in tensors)
    return Adapter(meta["emotion"], {name: (tensors[f"{name}/l"], tensors[f"{name}/r"]) for name in names}, meta)
