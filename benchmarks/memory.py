"""Peak extra memory of extraction for 100 and 3,000 responses: `python benchmarks/memory.py`.

Each in processes of its own, the median of three. Extra is the highest memory during extraction, above the loaded
model after a bare forward pass of one of the same batches; the result itself (4 bytes x responses x layers x d_model a
site) is taken off. glibc is told to give memory back at once, or its reserves would blur the numbers by 20 MiB. On a
GPU the GPU's memory is measured (the result lies in main memory). About 6 minutes on two cores.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from _harness import CUDA, arguments, judged, plain_row, random_model, record
from extraction import responses

from emolab.models.prompts import encode
from emolab.vectors.activations import response_means

ANSWER = 56  # tokens; 64 with the prompt
BATCHES = 8, 50  # 50 is half of the few: more rows would be one batch there and larger ones of the many
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _status(field: str) -> float:
    """MiB of VmRSS (now) or VmHWM (the peak since the last reset)."""
    return next(int(line.split()[1]) / 2**10 for line in STATUS.read_text().splitlines() if line.startswith(field))


def measure(n: int, rows: int, n_layers: int = 12, d_model: int = 256) -> dict:
    model = random_model(n_layers, d_model)
    table = responses(n, prompt=8, answer=ANSWER)
    few = table.head(rows)
    batch = encode(model, list(few["prompt"]), list(few["text"]))
    with torch.inference_mode():
        model.bridge(batch.input_ids, attention_mask=batch.attention_mask, logits_to_keep=1, use_cache=False)
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        CLEAR.write_text("5")  # the peak starts again from here
        before = _status("VmRSS")
    means = response_means(model, table, batch_size=rows)
    peak = torch.cuda.max_memory_allocated() / 2**20 if CUDA else _status("VmHWM")
    result = sum(x.nbytes for x in (*means.means.values(), means.resid_norm)) / 2**20
    return {"before": before, "peak": peak, "result": result, "extra": peak - before - (0 if CUDA else result)}


def main() -> None:
    a = arguments()
    if not CUDA and not CLEAR.exists():
        raise SystemExit("memory.py skipped: without a GPU it needs Linux, whose kernel can reset a process's peak")
    table = [row for batch in BATCHES for row in compared(batch, a.quick)]
    setting = f"12 layers, d 256, batches of {' and '.join(map(str, BATCHES))}, {8 + ANSWER} tokens, four sites"
    record("memory of extraction", table, setting=setting)


def compared(batch: int, quick: bool) -> list[dict]:
    found = {}
    for n in (100, 300 if quick else 3000):
        command = [sys.executable, __file__, "--child", str(n), str(batch)]
        runs = []
        for _ in range(1 if quick else 3):
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | RETURNED)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        found[n] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    rows, of = [], f"batches of {batch}"
    for n, x in found.items():
        rows.append(plain_row(f"{of}, {n} responses: loaded model", round(x["before"]), "MiB"))
        rows.append(plain_row(f"{of}, {n} responses: result", round(x["result"], 1), "MiB"))
        rows.append(plain_row(f"{of}, {n} responses: extra beside the result", round(x["extra"], 1), "MiB"))
    few, many = found.values()
    ratio = many["extra"] / few["extra"]
    (n_few, n_many), more = found, (many["extra"] - few["extra"]) * 2**10
    rows.append(plain_row(f"{of}: extra, for one response more", round(more / (n_many - n_few), 2), "KiB"))
    rows.append(plain_row(f"{of}: extra, many over few", round(ratio, 3), "x") | judged(ratio, ("<=", 1.05)))
    return rows


if __name__ == "__main__":
    if "--child" in sys.argv:
        print(json.dumps(measure(int(sys.argv[-2]), int(sys.argv[-1]))))
    else:
        main()
