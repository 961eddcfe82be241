"""What a notebook did to torch before changes nothing: default device and dtype, gradients off, inference mode.

"meta" stands in for "cuda": a tensor made on the default device holds no numbers there, and the CPU's fail beside it.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch

import emolab
from emolab import experiments, geometry, heads, widgets
from emolab.answers.logprobs import token_logprobs
from emolab.comparisons.comparison import Comparison
from emolab.comparisons.lora import Training, fit_lora, merge_lora
from emolab.judges import LexiconJudge, SelfReportJudge, embedding, judges
from emolab.models.prompts import encode
from emolab.models.sites import output_weights
from emolab.steering.gguf import from_gguf, to_gguf
from emolab.studies.selfcheck import check_model
from emolab.vectors import from_tensors, other_like, random_like, shuffled_like
from tests.refusing import head_test

TEXTS = ["tell me about the park", "how did you feel ?"]
ANSWERS = ["it was quiet and very cold", "i was happy and glad"]
JUDGE = LexiconJudge({"joy": {"happy"}, "sadness": {"sad"}})
MORE = {"seconds", "speed"}  # columns that a clock fills


@contextmanager
def default(setter, value, usual):
    setter(value)
    try:
        yield
    finally:
        setter(usual)


STATES = {
    "device meta": lambda: default(torch.set_default_device, "meta", None),
    "float64": lambda: default(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: default(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "gradients off": lambda: default(torch.set_grad_enabled, False, True),
    "inference": torch.inference_mode,
}


def steered(w, **options):
    return w.generate(TEXTS, steering=w.steering(**options), max_new_tokens=4)


def on_bridge(w):
    batch = encode(w.model, TEXTS)
    with emolab.steered(w.model, w.steering()) as model:
        logits, cache = model.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask)
    return [logits.detach(), cache["blocks.1.hook_resid_post"].detach()]  # a call of the user's own may keep its graph


def panel(w):
    shown = widgets.SteeringPanel(w.model, w.vectors, doses={"joy": 1.0}, judge=False, max_new_tokens=4)
    shown.dials.sliders["sadness"].value = 0.5
    assert shown.wait(30)
    shown.close()
    return [shown.texts, shown._status.value]


def embedded(w):
    embedding._embedded.cache_clear()
    return [judges.embed(ANSWERS), judges.EmbeddingJudge()(ANSWERS)]


def files(w):
    w.vectors.save(w.folder / "v.safetensors")
    to_gguf(w.vectors, w.folder / "v.gguf", {"joy": 1.0})
    loaded = emolab.EmotionVectors.load(w.folder / "v.safetensors")
    plain = from_tensors(w.plain, site="resid", model=w.model)
    return [loaded, from_gguf(w.folder / "v.gguf", model=w.model), plain]


def methods(w):
    comparison = Comparison(w.model, w.vectors, emolab.Setting(site="attn"))
    choosing, report = (emolab.load_queries({"neutral": [f"the {word} ?"]}) for word in ("sea", "rain"))
    names = ("instruction", "emotion vector", "pca", "probe", "random")
    return emolab.compare_methods(
        comparison, w.responses, choosing, report, methods=names, judges=JUDGE, max_new_tokens=2
    )


def lora(w):
    adapter = fit_lora(w.model, w.responses, "joy", training=Training(steps=1))
    return merge_lora(w.model, {adapter: 1.0}).hf.get_output_embeddings().weight


VERBS = {
    "load_model": lambda w: [
        emolab.load_model(given).fingerprint for given in (w.model.source, (w.model.hf, w.model.tokenizer))
    ],
    "generate": lambda w: w.generate(TEXTS),
    "sampled": lambda w: w.generate(TEXTS, writing=emolab.Writing(temperature=1.0, seed=3), max_new_tokens=6),
    **{
        f"{op} at {site}": lambda w, op=op, site=site: steered(w, op=op, site=site)
        for op in ("add", "ablate", "clamp", "rotate", "cap")
        for site in ("resid", "attn", "mlp", "head")
    },
    "under a condition": lambda w: steered(w, when=emolab.When(w.vectors, "joy", layer=0, above=-0.1)),
    "choices": lambda w: emolab.choices(w.model, TEXTS, ["sun", "rain"], steering=w.steering()),
    "word_embeddings": lambda w: geometry.word_embeddings(w.model, ["joy", "fear"]),
    "residual, fading": lambda w: steered(w, unit="residual", fade=3),
    "specific": lambda w: steered(w, part="specific"),
    "breaking": lambda w: experiments.find_breaking(w.model, w.steering(), TEXTS, texts=ANSWERS).meta["breaking"],
    "steered": on_bridge,
    "extract_vectors": lambda w: emolab.extract_vectors(w.model, w.responses, sites=("resid", "attn", "mlp", "head")),
    "from the third token": lambda w: emolab.response_means(w.model, w.responses, tokens="from:3").means,
    "arithmetic": lambda w: [w.vectors.part("shared"), w.vectors.normalized(), w.vectors + 0.5 * w.vectors],
    "controls": lambda w: [
        random_like(w.vectors), shuffled_like(w.vectors), other_like(w.vectors, {"joy": "sadness"})
    ],
    "files": files,
    "sweep": lambda w: w.sweep(w.queries.head(2), controls=("random", "shuffled")),
    "part_purity": lambda w: experiments.part_purity(
        w.model, w.vectors, TEXTS[:1], judge=JUDGE, max_new_tokens=2
    ),
    "choose_wording": lambda w: emolab.choose_wording(
        w.model, w.queries.head(2), ("joy",), judges=JUDGE, max_new_tokens=2
    ).table,
    "token_logprobs": lambda w: token_logprobs(w.model, TEXTS, ANSWERS),
    "self-report": lambda w: SelfReportJudge(w.model)(["i was happy", "it was sad"]),
    "embedding": embedded,
    "heads, ablated": lambda w: w.heads(),
    "heads, patched": lambda w: w.heads(test=head_test(op="patch")),
    "head_maps": lambda w: heads.head_maps(w.vectors, w.means, W_O=output_weights(w.model), n_splits=2),
    "top_words": lambda w: heads.top_words(w.model, w.vectors, n=2),
    "emotion_tokens": lambda w: heads.emotion_tokens(w.model, w.responses),
    "attention": lambda w: heads.attention_pattern(w.model, *w.responses.loc[0, ["prompt", "text"]], layer=1, head=0),
    "token_view": lambda w: widgets.token_view(w.model, TEXTS[0], w.vectors, emotion="joy").table,
    "panel": panel,
    "probes": lambda w: geometry.probe_accuracy(w.means, n_permutations=2),
    "split_half": lambda w: geometry.split_half(w.means, n_splits=2),
    "cosines": lambda w: [geometry.cosine_matrix(w.vectors, layer=1), geometry.vector_agreement(w.vectors, w.vectors)],
    "methods": methods,
    "lora": lora,
    "check_model": lambda w: [str(check) for check in check_model(w.model)],
}  # fmt: skip


def plain(value) -> list:
    """Numbers and texts of a result, in order; no tensor of it hangs on a graph."""
    if isinstance(value, emolab.EmotionVectors):
        return plain([*value.data.values(), value.resid_norm])
    if isinstance(value, torch.Tensor):
        assert not value.requires_grad and not value.is_meta
        return [str(value.dtype), value.double().numpy()]
    if isinstance(value, pd.DataFrame):
        return [
            item for name in sorted({*value} - MORE) for item in (name, *value[name].astype(object).fillna("").tolist())
        ]
    if isinstance(value, dict):
        value = [item for pair in value.items() for item in pair]
    if isinstance(value, list | tuple):
        return [item for one in value for item in plain(one)]
    return [value]


@pytest.fixture(scope="module")
def usual(world):
    """What each verb gives while nothing is set, made when first asked for."""
    from safetensors.torch import save_file

    world.plain = world.folder / "plain.safetensors"
    save_file({"joy": world.vectors.get("resid")[0].clone()}, world.plain)
    made = {}

    def of(name):
        if name not in made:
            made[name] = plain(VERBS[name](world))
        return made[name]

    return of


# What torch draws for LoRA's adapters depends on the default dtype.
DRAWN = {("lora", "float64"), ("lora", "bfloat16")}
CASES = [(name, state) for name in VERBS for state in STATES if (name, state) not in DRAWN]


@pytest.mark.filterwarnings("ignore:.*left out at equal damage")  # a model that answers with nothing
@pytest.mark.parametrize(("name", "state"), CASES, ids=[f"{name}, {state}" for name, state in CASES])
def test_the_same_result(world, usual, name, state):
    expected = usual(name)
    with STATES[state]():
        found = VERBS[name](world)
    np.testing.assert_equal(plain(found), expected)


def test_nothing_that_emolab_gives_builds_a_graph(world):
    """Gradients on, and weights that take them, as of a model that somebody trains."""
    model = emolab.load_model((world.model.hf, world.model.tokenizer))
    flags = [p.requires_grad for p in model.hf.parameters()]
    try:
        model.hf.requires_grad_(True)
        means = emolab.response_means(model, world.responses)
        made = emolab.extract_vectors(model, world.responses, means=means)
        plain([made, made.part("specific"), random_like(made), means.means, output_weights(model)])
        assert emolab.generate(model, TEXTS, steering=emolab.Steering(made, {"joy": 1.0}), max_new_tokens=2)
        assert all(p.grad is None for p in model.hf.parameters())
    finally:
        for p, flag in zip(model.hf.parameters(), flags, strict=True):
            p.requires_grad_(flag)


@torch.no_grad()
def test_gradients_off_by_decorator(world):
    assert np.isfinite(fit_lora(world.model, world.responses, "joy", training=Training(steps=1)).meta["loss"]).all()
