"""What steering costs while a model writes, and what a grid of steerings costs in one batch.

`python benchmarks/steering.py`. Greedy text of fixed length (no end of answer), so that every case does the same work;
speed is tokens a second. emolab's cases are whole calls of `generate`, with prompts rendered, tokenized and answers
decoded; Hugging Face's `generate` gets ready token tensors. About 10 minutes on two cores.
"""

from __future__ import annotations

import torch
from _harness import CUDA, arguments, measure, plain_row, random_model, ratios, record, sizes, text

import emolab
from emolab import EmotionVectors, Steering, Writing, generate
from emolab.models.prompts import encode, render_prompts

PROMPT, NEW = 32, 32


def vectors(model) -> EmotionVectors:
    """Random vectors, small beside the residual stream, so that texts differ and stay finite."""
    draw = torch.Generator().manual_seed(0)
    data = {site: torch.randn(5, model.n_layers, model.d_model, generator=draw) * 0.02 for site in ("resid", "attn")}
    return EmotionVectors(
        data, emolab.EMOTIONS, torch.ones(model.n_layers), {"model": model.name, "fingerprint": model.fingerprint}
    )


def cases(model, batch: int, new: int = NEW, *, bridge: bool) -> dict:
    prompts = [text(PROMPT, i) for i in range(batch)]
    ready = encode(model, render_prompts(model, prompts))
    steering = Steering(vectors(model), {"joy": 1.0})
    # On the GPU plan_batches would choose 512 rows, on the CPU 128: one batch in every case.
    options = {"max_new_tokens": new, "writing": Writing(batch_size=batch)}

    def bare():
        with torch.inference_mode():
            mask = ready.attention_mask
            ids = model.hf.generate(
                ready.input_ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0
            )
        assert ids.shape[1] == ready.input_ids.shape[1] + new

    def on_bridge():
        with emolab.steered(model, steering):
            generate(model, prompts, **options)

    found = {
        "Hugging Face generate": bare,
        "unsteered": lambda: generate(model, prompts, **options),
        "steered": lambda: generate(model, prompts, steering=steering, **options),
    }
    return found | ({"steered, on the bridge": on_bridge} if bridge else {})


def grid(model, size: int = 36) -> tuple[list[str], list[Steering]]:
    """One prompt under `size` steerings: emotions, sites and doses."""
    ev = vectors(model)
    doses = (-1, 0.5, 1, 2, 3, 4)
    found = [Steering(ev, {e: x}, site=site) for site in ev.sites for x in doses for e in ev.emotions]
    return [text(PROMPT, 0)] * size, [found[i % len(found)] for i in range(size)]


def main() -> None:
    a = arguments()
    for n_layers, d_model, dtype in sizes(a.quick):
        model, large = random_model(n_layers, d_model, dtype=dtype), d_model > 512
        new = 16 if large and not CUDA else NEW  # a round of seconds: a busy minute then hits all cases of it
        for batch in (1, 8) if a.quick or (large and not CUDA) else (1, 8, 32):
            seconds = measure(cases(model, batch, new, bridge=not large), repeats=a.repeats)
            setting = f"{n_layers} layers, d {d_model}, {dtype}, batch {batch}, {PROMPT} + {new} tokens"
            ours = {k: v for k, v in seconds.items() if not k.startswith("Hugging")}
            rows = ratios(ours, against="unsteered", goals={"steered": (">=", 0.95)}, speed=True)
            record("steered generation against unsteered", rows, setting=setting)
            plain = {k: seconds[k] for k in ("Hugging Face generate", "steered")}
            rows = ratios(plain, against="Hugging Face generate", goals={"steered": (">=", 0.90)}, speed=True)
            record("steered generation against Hugging Face", rows, setting=setting)
        if large and not CUDA:
            continue  # minutes a round
        prompts, steerings = grid(model)
        texts = {}

        def single(model=model, prompts=prompts, steerings=steerings, texts=texts, new=new):
            pairs = zip(prompts, steerings, strict=True)
            texts["single"] = [generate(model, p, steering=s, max_new_tokens=new)[0] for p, s in pairs]

        def together(model=model, prompts=prompts, steerings=steerings, texts=texts, new=new):
            writing = Writing(batch_size=len(prompts))
            texts["together"] = generate(model, prompts, steering=steerings, max_new_tokens=new, writing=writing)

        seconds = measure({"one batch": together, "one at a time": single}, repeats=min(a.repeats, 3))
        rows = ratios(seconds, against="one at a time", goals={"one batch": (">=", 6)}, speed=True)
        same = sum(x == y for x, y in zip(texts["single"], texts["together"], strict=True))
        rows.append(plain_row("equal greedy texts", same, f"of {len(prompts)}", (">=", len(prompts))))
        rows.append(plain_row("different texts in the grid", len(set(texts["single"])), f"of {len(prompts)}"))
        setting = f"{n_layers} layers, d {d_model}, {dtype}, {PROMPT} + {new} tokens"
        record(f"grid of {len(prompts)} steerings", rows, setting=setting)


if __name__ == "__main__":
    main()
