"""Side-by-side timings: what every benchmark shares. Claims are ratios of medians, measured in turn in one process.

>>> rows = compare({"plain": f, "hooked": g}, against="plain")     # each f, g is a call without arguments
>>> record("extraction", rows, setting="12 layers, d 256")         # into results.json and docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import emolab
from emolab.storage import write_json

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results.json", HERE.parent / "docs" / "benchmarks.md"
WORDS = 4000  # vocabulary of the random models; a multiple of what a batch needs, small beside the blocks


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one small size and few repeats: does it run at all?")
    parser.add_argument("--threads", type=int, default=0, help="default: as torch chooses")
    found = parser.parse_args()
    if found.threads:
        torch.set_num_threads(found.threads)
    found.repeats = 2 if found.quick else found.repeats
    return found


def compare(cases: dict[str, Callable[[], object]], *, against: str, repeats: int = 5) -> list[dict]:
    """Run all cases in turn, `repeats` times after one warm-up; median seconds, spread, and ratio to one of them.

    The ratio is the median over rounds of (case / reference in the same round), so that a slow minute hits both.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        order = list(cases) if turn % 2 else list(reversed(cases))  # neither always goes first
        for name in order:
            gc.collect()
            _wait()
            start = time.perf_counter()
            cases[name]()
            _wait()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, found in seconds.items():
        ratios = [a / b for a, b in zip(found, seconds[against], strict=True)]
        rows.append(
            {
                "case": name,
                "median_s": round(statistics.median(found), 4),
                "min_s": round(min(found), 4),
                "max_s": round(max(found), 4),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_min": round(min(ratios), 3),
                "ratio_max": round(max(ratios), 3),
                "against": against,
            }
        )
    return rows


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def random_model(n_layers: int, d_model: int, *, dtype: str = "float32", heads: int | None = None):
    """A Llama of random weights with a word tokenizer, saved and loaded as any directory is."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<pad>"
    )
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=d_model, intermediate_size=d_model * 8 // 3, num_hidden_layers=n_layers,
        num_attention_heads=heads or d_model // 64, num_key_value_heads=heads or d_model // 64,
        max_position_embeddings=1024, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = LlamaForCausalLM(config).to(getattr(torch, dtype))
        model.generation_config.eos_token_id = None  # every answer has the full length: equal work everywhere
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del model
        loaded = emolab.load_model(folder, dtype=dtype)
    loaded.name = f"random Llama, {n_layers} layers, d {d_model}, {dtype}"
    return loaded


def words(n: int, seed: int) -> str:
    draw = torch.Generator().manual_seed(seed)
    return " ".join(f"w{i}" for i in torch.randint(3, WORDS, (n,), generator=draw).tolist())


def machine() -> dict:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cores, threads = os.cpu_count(), torch.get_num_threads()
    return {"cpu": cpu, "cores": cores, "threads": threads, "gpu": gpu, "versions": emolab.versions()}


def record(name: str, rows: list[dict], *, setting: str, goal: str = "") -> None:
    """Print the rows, and put them into results.json and the page in docs/."""
    width = max(len(row["case"]) for row in rows)
    print(f"\n{name}: {setting}" + (f" (goal {goal})" if goal else ""))
    for row in rows:
        told = f"{row['ratio']:.3f} x" if "ratio" in row else f"{row['value']} {row['unit']}"
        print(f"  {row['case']:<{width}}  {told}", flush=True)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found[f"{name}: {setting}"] = {"goal": goal, "machine": machine(), "rows": rows}
    write_json(RESULTS, dict(sorted(found.items())))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(_page(found), encoding="utf-8")


def _page(results: dict) -> str:
    lines = [
        "# Benchmarks", "",
        "Ratios, measured in turn in one process on random-weight models; `make bench` makes this page again.",
        "Times depend on the machine, ratios much less. Brackets: lowest and highest round.", "",
    ]  # fmt: skip
    machines = {json.dumps(r["machine"], sort_keys=True): r["machine"] for r in results.values()}
    for m in machines.values():
        lines.append(f"Machine: {m['gpu'] or m['cpu']}, {m['cores']} cores, {m['threads']} threads; {m['versions']}.")
    for name, result in sorted(results.items()):
        lines += ["", f"## {name}", "", f"Goal: {result['goal']}" if result["goal"] else "", ""]
        lines += ["| case | measured | against |", "|---|---|---|"]
        for row in result["rows"]:
            if "ratio" in row:
                told = f"{row['ratio']:.2f} x [{row['ratio_min']:.2f}, {row['ratio_max']:.2f}], {row['median_s']:.3f} s"
            else:
                told = f"{row['value']} {row['unit']}"
            lines.append(f"| {row['case']} | {told} | {row.get('against', '')} |")
    return "\n".join(lines) + "\n"
