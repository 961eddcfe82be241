"""Train the toy model from nothing: `python -m tests.mini.train` (or `make mini`).

Seeded, resumable (a checkpoint every few hundred steps), with a progress bar and a log of loss, binding gap,
instruction following and steering in `train_log.csv`. The binding gap is the loss with a wrong emotion in the
instruction minus the loss with the right one: it shows that the model reads the instruction long before the validation
loss does.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS
from tests.mini import WEIGHTS
from tests.mini.corpus import Example, example
from tests.mini.tokenizer import build

CHUNK = 64  # batches drawn and sorted by length together; also the unit of resuming
MONITOR = 8  # chunks between two looks at instruction following and steering
STEPS = 3200  # about 7 million tokens; what the bundled weights were trained with
EASY = 12  # so many chunks of easy texts come first


def new_model(
    vocab_size: int, *, d_model: int = 192, n_layers: int = 6, n_heads: int = 6, seed: int = 0
) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size, hidden_size=d_model, intermediate_size=d_model * 8 // 3,
                num_hidden_layers=n_layers, num_attention_heads=n_heads, num_key_value_heads=n_heads,
                max_position_embeddings=512, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            )
        )  # fmt: skip


def to_ids(tok: PreTrainedTokenizerFast, examples: list[Example]) -> list[tuple[list[int], int]]:
    """Token ids and the place where the answer starts, for each example."""
    prompts = []
    for e in examples:
        messages = ([{"role": "system", "content": e.system}] if e.system else []) + [
            {"role": "user", "content": e.user}
        ]
        prompts.append(tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    heads = tok(prompts, add_special_tokens=False).input_ids
    tails = tok([e.answer for e in examples], add_special_tokens=False).input_ids
    return [(h + t + [tok.eos_token_id], len(h)) for h, t in zip(heads, tails, strict=True)]


def collate(rows: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    """Right-padded ids and labels (-100 where no loss is taken: prompt and padding); causal, so no mask is needed."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), -100)
    for i, (row, start) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, start : len(row)] = ids[i, start : len(row)]
    return ids, labels


def chunk(tok: PreTrainedTokenizerFast, index: int, *, batch: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """The index-th chunk of batches: the same for the same seed, so that a killed run goes on exactly."""
    rng = random.Random(f"{seed}-{index}")
    texts = [example(rng, easy=index < EASY) for _ in range(CHUNK * batch)]
    rows = sorted(to_ids(tok, texts), key=lambda r: len(r[0]))
    batches = [collate(rows[i : i + batch]) for i in range(0, len(rows), batch)]
    rng.shuffle(batches)
    return batches


def answer_loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    keep = labels[:, 1:] != -100  # the vocabulary is only projected where a loss is taken
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[keep]), labels[:, 1:][keep])


@torch.inference_mode()
def validation(model: LlamaForCausalLM, tok: PreTrainedTokenizerFast, *, n: int = 192) -> dict[str, float]:
    """Loss on fresh texts, and the binding gap on instructed ones."""
    rng = random.Random("validation")
    drawn = [example(rng) for _ in range(2 * n)]
    loss = answer_loss(model, *collate(to_ids(tok, drawn[:n]))).item()
    right = [e for e in drawn if e.kind == "instructed" and e.system and e.emotion in e.system]
    wrong = [
        replace(e, system=str(e.system).replace(e.emotion, EMOTIONS[(EMOTIONS.index(e.emotion) + 1) % 5]))
        for e in right
    ]
    gap = (
        answer_loss(model, *collate(to_ids(tok, wrong))).item()
        - answer_loss(model, *collate(to_ids(tok, right))).item()
    )
    return {"loss": loss, "binding_gap": gap}


def learning_rate(step: int, total: int, peak: float) -> float:
    """Warm-up over 200 steps, then flat, then a linear fall to zero over the last 30 %."""
    return peak * min(1.0, (step + 1) / 200, max(0.0, (total - step) / (0.3 * total)))


def _optimizers(model: LlamaForCausalLM, *, muon: bool) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n] if muon else []
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    ]
    if muon:
        found.append(
            torch.optim.Muon(matrices, lr=1.0, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        )
    return found


def _save_checkpoint(path: Path, model: LlamaForCausalLM, optimizers: list, step: int, seen: int) -> None:
    tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
    for i, opt in enumerate(optimizers):
        tensors |= {f"opt.{i}.{j}.{k}": v.clone() for j, s in opt.state_dict()["state"].items() for k, v in s.items()}
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"step": str(step), "tokens": str(seen)})
    part.replace(path)


def _load_checkpoint(path: Path, model: LlamaForCausalLM, optimizers: list) -> tuple[int, int]:
    with safe_open(path, "pt") as f:
        step, seen = int(f.metadata()["step"]), int(f.metadata()["tokens"])
    tensors = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    for i, opt in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, v in tensors.items():
            if name.startswith(f"opt.{i}."):
                _, _, j, k = name.split(".", 3)
                state.setdefault(int(j), {})[k] = v
        opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    return step, seen


def export(model: LlamaForCausalLM, tok: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an ordinary Hugging Face directory, weights in fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    half = LlamaForCausalLM(model.config).half()
    half.load_state_dict({k: v.half() for k, v in model.state_dict().items()})
    half.generation_config.eos_token_id, half.generation_config.pad_token_id = tok.eos_token_id, tok.pad_token_id
    half.save_pretrained(folder)
    tok.save_pretrained(folder)


def monitor(model: LlamaForCausalLM, tok: PreTrainedTokenizerFast) -> dict[str, float]:
    """Instruction following and steering as they are now (see `tests.mini.monitor`); the model is left as it was."""
    from tests.mini.monitor import check

    frozen = copy.deepcopy(model).requires_grad_(False)
    return check(frozen, tok)


def train(
    *,
    steps: int = STEPS,
    batch: int = 32,
    peak: float = 2e-3,
    seed: int = 0,
    muon: bool = True,
    out: Path = Path("runs/mini-training"),
    threads: int | None = None,
    export_to: Path | None = WEIGHTS,
) -> dict:
    """Train, or go on with, one model; the last row of the log is returned. Time: about 0.3 s a step on two cores."""
    if threads:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    tok = build()
    model = new_model(len(tok), seed=seed)
    optimizers = _optimizers(model, muon=muon)
    settings = {
        "steps": steps,
        "batch": batch,
        "peak": peak,
        "seed": seed,
        "muon": muon,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    noted, log = out / "training.json", out / "train_log.csv"
    checkpoint, start, seen, row, loss = out / "checkpoint.safetensors", 0, 0, {}, torch.tensor(math.nan)
    if checkpoint.exists():
        before = json.loads(noted.read_text())
        if before != settings:
            raise EmolabError(f"{out} holds a training with {before}, not {settings}; choose another folder")
        start, seen = _load_checkpoint(checkpoint, model, optimizers)
    noted.write_text(json.dumps(settings, indent=1) + "\n")
    bar = tqdm(total=steps, initial=start, unit="step", mininterval=5)
    for index in range(start // CHUNK, math.ceil(steps / CHUNK)):
        for offset, (ids, labels) in enumerate(chunk(tok, index, batch=batch, seed=seed)):
            step = index * CHUNK + offset
            for opt in optimizers:
                for group in opt.param_groups:
                    group["lr"] = learning_rate(step, steps, peak)
            loss = answer_loss(model, ids, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt in optimizers:
                opt.step()
                opt.zero_grad()
            seen += int((ids != 0).sum())
            bar.update()
        done = (index + 1) * CHUNK
        if (index + 1) % 4 == 0 or done >= steps:
            row = {"step": done, "tokens": seen, "train_loss": round(loss.item(), 4)}
            row |= {k: round(v, 4) for k, v in validation(model, tok).items()}
            if (index + 1) % MONITOR == 0 or done >= steps:
                row |= monitor(model, tok)
                export(model, tok, out / "weights")
            _log(log, row)
            bar.set_postfix({k: row[k] for k in ("loss", "binding_gap", "follows", "steered") if k in row})
            _save_checkpoint(checkpoint, model, optimizers, done, seen)
    if export_to:
        export(model, tok, export_to)
        for file in (noted, log):
            shutil.copy(file, export_to / file.name)
    return row


def _log(path: Path, row: dict) -> None:
    """Add a row to the log; a row of the same step, left by a killed run, is replaced."""
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    rows = [r for r in rows if int(r["step"]) < row["step"]] + [row]
    columns = ["step", "tokens", "train_loss", "loss", "binding_gap", "follows", "plain", "steered", "worst", "random"]
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, [*columns, "ppl_ratio", "pair_cosine", "resid_norm"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the toy model `mini`.")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, default=2e-3)
    parser.add_argument(
        "--adamw", action="store_true", help="AdamW for all parameters instead of Muon for the matrices"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/mini-training"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-export", action="store_true", help="leave the package's own weights as they are")
    a = parser.parse_args()
    train(
        steps=a.steps,
        batch=a.batch,
        peak=a.peak,
        seed=a.seed,
        muon=not a.adamw,
        out=a.out,
        threads=a.threads,
        export_to=None if a.no_export else WEIGHTS,
    )


if __name__ == "__main__":
    main()
