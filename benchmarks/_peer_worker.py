"""One side of benchmarks/peers.py, in an environment of its own: loads a model once, then runs cases when asked.

`python _peer_worker.py emolab|steering-vectors FOLDER`, the name of a case on each line of standard input, its seconds
on each line of standard output. FOLDER holds the model and texts.json. Both sides share this file, and so the clock.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

BATCH = 8


def emolab_cases(folder: Path, data: dict) -> dict:
    import pandas as pd

    import emolab

    model = emolab.load_model(folder)
    table = pd.DataFrame(data["rows"])
    last = table.assign(  # the last token alone as response: what steering-vectors reads
        prompt=table["prompt"] + " " + table["text"].str.rsplit(n=1).str[0], text=table["text"].str.rsplit(n=1).str[1]
    )

    def run(table=table, **options):
        return emolab.extract_vectors(model, table, batch_size=BATCH, **options)

    def check():
        found = run(last, sites=("resid",))
        np.save(folder / "emolab.npy", found.data["resid"][[found.emotions.index(e) for e in data["emotions"]]].numpy())

    return {"all": lambda: run(sites=emolab.models.sites.SITES), "resid": lambda: run(sites=("resid",)), "check": check}


def peer_cases(folder: Path, data: dict) -> dict:
    from steering_vectors import train_steering_vector
    from steering_vectors.train_steering_vector import aggregate_activations, extract_activations, mean_aggregator
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).to(device).eval()
    file = str(folder / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, pad_token="<pad>", padding_side="left")
    texts: dict[str, list[str]] = {}
    for row in data["rows"]:
        texts.setdefault(row["condition"], []).append(row["prompt"] + " " + row["text"])

    def pairs(positive, negative):
        return list(zip(texts[positive], texts[negative], strict=True))

    def train(batch):
        found = {}
        for e in data["emotions"]:
            found[e] = train_steering_vector(model, tokenizer, pairs(e, "neutral"), batch_size=batch)
        return found

    def once():
        """Not its training: its parts put together so that no text runs twice, which its pairs of texts allow."""
        order, found = [*data["emotions"], "neutral"], {}
        for a, b in zip(order[::2], order[1::2], strict=True):
            found[a], found[b] = extract_activations(model, tokenizer, pairs(a, b), batch_size=BATCH)
        return [aggregate_activations(found[e], found["neutral"], mean_aggregator()) for e in data["emotions"]]

    def check():
        vectors = [train(BATCH)[e].layer_activations for e in data["emotions"]]
        found = np.stack([np.stack([v[layer].cpu().numpy() for layer in sorted(v)]) for v in vectors])
        np.save(folder / "peer.npy", found)

    return {"batch": lambda: train(BATCH), "default": lambda: train(1), "once": once, "check": check}


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    data = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    torch.set_num_threads(data["threads"])
    cases = (emolab_cases if kind == "emolab" else peer_cases)(folder, data)
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    print(f"ready {torch.cuda.is_available()}", flush=True)
    for line in sys.stdin:
        gc.collect()
        wait()
        start = time.perf_counter()
        cases[line.strip()]()
        wait()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
