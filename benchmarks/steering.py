"""What steering costs while a model writes, and what a grid of steerings costs in one batch.

`python benchmarks/steering.py`. Greedy text of fixed length, so that every case does the same work.
"""

from __future__ import annotations

import torch
from _harness import arguments, compare, random_model, record, words

import emolab
from emolab import EmotionVectors, Steering, generate
from emolab.models import encode, render_prompts

NEW = 32


def vectors(model) -> EmotionVectors:
    draw = torch.Generator().manual_seed(0)
    data = {site: torch.randn(5, model.n_layers, model.d_model, generator=draw) * 0.02 for site in ("resid", "attn")}
    meta = {"model": model.name, "fingerprint": model.fingerprint}
    return EmotionVectors(data, emolab.EMOTIONS, torch.ones(model.n_layers), meta)


def main() -> None:
    a = arguments()
    for n_layers, d_model in [(12, 256)] if a.quick else [(12, 256), (24, 1024)]:
        model = random_model(n_layers, d_model)
        ev, size = vectors(model), f"{n_layers} layers, d {d_model}"
        for batch in (1, 8) if a.quick or d_model > 512 else (1, 8, 32):
            prompts = [words(32, i) for i in range(batch)]
            steering = Steering(ev, {"joy": 1.0}, site="resid")
            rendered = encode(model, render_prompts(model, prompts))

            def bare(model=model, rendered=rendered):
                with torch.inference_mode():
                    model.hf.generate(
                        rendered.input_ids, attention_mask=rendered.attention_mask, max_new_tokens=NEW, do_sample=False,
                        pad_token_id=0,
                    )  # fmt: skip

            def unsteered(model=model, prompts=prompts):
                generate(model, prompts, max_new_tokens=NEW)

            def steered(model=model, prompts=prompts, steering=steering):
                generate(model, prompts, steering=steering, max_new_tokens=NEW)

            def bridge(model=model, prompts=prompts, steering=steering):
                with emolab.steered(model, steering):
                    generate(model, prompts, max_new_tokens=NEW)

            cases = {"unsteered": unsteered, "steered": steered, "steered, on the bridge": bridge}
            rows = compare(cases, against="unsteered", repeats=a.repeats)
            record("steered generation against unsteered", rows, setting=f"{size}, batch {batch}", goal="1.05 x")
            cases = {"Hugging Face generate": bare, "steered": steered}
            rows = compare(cases, against="Hugging Face generate", repeats=a.repeats)
            record("steered generation against Hugging Face", rows, setting=f"{size}, batch {batch}", goal="1.11 x")
        if d_model > 512:
            continue
        prompt = words(32, 0)
        doses = (-1, 0.5, 1, 2, 3, 4)
        grid = [Steering(ev, {e: x}, site=s) for e in ev.emotions[:3] for s in ev.sites for x in doses]
        one_by_one: list[str] = []

        def single(model=model, prompt=prompt, grid=grid, out=one_by_one):
            out[:] = [generate(model, prompt, steering=s, max_new_tokens=NEW)[0] for s in grid]

        def together(model=model, prompt=prompt, grid=grid, out=one_by_one):
            found = generate(model, [prompt] * len(grid), steering=grid, max_new_tokens=NEW)
            if out and found != out:
                raise SystemExit("a grid in one batch gave other texts than one by one")

        rows = compare({"one batch": together, "one at a time": single}, against="one batch", repeats=a.repeats)
        record(f"grid of {len(grid)} steerings", rows, setting=size, goal="at least 6 x, same greedy tokens")


if __name__ == "__main__":
    main()
