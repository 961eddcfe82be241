"""What emolab promises of every architecture: one function a promise, each returns the mark of its cell in the docs.

"yes": the promise holds as it stands. A letter: a convention or a refusal, see family_docs.NOTES. Else AssertionError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

from emolab.answers.generation import generate
from emolab.answers.logprobs import token_logprobs
from emolab.base.errors import EmolabError
from emolab.models.hooks import forward
from emolab.models.load import load_model
from emolab.models.model import Model
from emolab.models.prompts import Batch, encode
from emolab.models.sites import hf_modules, site_hooks, site_layers
from emolab.models.templates import turn_ends
from emolab.steering.conditions import When
from emolab.steering.edits import hooked
from emolab.steering.steering import Steering, build_edits
from emolab.vectors.activations import response_means
from emolab.vectors.vectors import extract_vectors
from tests.answers.uncached import uncached
from tests.families import NEW, QUERIES, TEXTS, UNPENALISED, Case, greedy
from tests.family_list import Family

TODAY = {"%d %b %Y": "26 Jul 2024", "%d %B %Y": "26 July 2024", "%B %d, %Y": "July 26, 2024", "%Y-%m-%d": "2024-07-26"}


def close(a, b, tolerance: float = 2e-5) -> None:
    """Equal up to a share of the largest value; where that is more than 2e-5, 99 % of the values are within 2e-5."""
    a, b = torch.as_tensor(np.asarray(a)).double(), torch.as_tensor(np.asarray(b)).double()
    off = (a - b).abs() / b.abs().max()
    assert a.shape == b.shape and off.max() < tolerance, f"off by {off.max():.1e}"
    assert off.flatten().kthvalue(math.ceil(0.99 * off.numel())).values < 2e-5


def _states(hf, family: Family, ids: list[int]) -> torch.Tensor:
    """Hidden states after every block, straight from Hugging Face: [layer, token, d_model]."""
    seen = {}
    norm = hf.get_submodule(family.norm)  # hidden_states[-1] stands behind this norm, block outputs before it
    handle = norm.register_forward_pre_hook(lambda module, args: seen.update(last=args[0]))
    with torch.inference_mode():
        states = hf(torch.tensor([ids]), output_hidden_states=True).hidden_states
    handle.remove()
    return torch.stack([*states[1:-1], seen["last"]])[:, 0]


def vectors_equal_hidden_states(case: Case) -> str:
    """Vectors equal those of Hugging Face's own hidden states: another copy of the model, row by row, no padding."""
    hf = AutoModelForCausalLM.from_pretrained(case.directory, dtype=torch.float32).eval()
    tok = AutoTokenizer.from_pretrained(case.directory)
    means = {}
    for condition, texts in TEXTS.items():
        rows = []
        for prompt, text in zip(case.prompts[condition], texts, strict=True):
            before, own = (tok(t, add_special_tokens=False).input_ids for t in (prompt, text))
            rows.append(_states(hf, case.family, before + own)[:, len(before) :].double().mean(1))
        means[condition] = torch.stack(rows).mean(0)
    found = extract_vectors(case.model, case.responses(), sites=("resid",), batch_size=3)
    close(found.get("resid", emotion="joy"), means["joy"] - means["neutral"])
    return "yes"


def attention_and_mlp_are_what_a_block_adds(case: Case) -> str:
    """`attn` + `mlp` is the step from one residual stream to the next."""
    if not {"attn", "mlp"} <= {*case.sites}:
        return _refused(case, "mlp")
    means = response_means(case.model, case.responses(), sites=("resid", "attn", "mlp")).means
    whole = [layer for layer in site_layers(case.model, "attn") if layer]
    step, added = np.diff(means["resid"], axis=1, prepend=0)[:, whole], (means["attn"] + means["mlp"])[:, whole]
    mark = "a" if case.name.startswith("Gemma 4") else "h" if case.name == "Falcon-H1" else None
    if mark:
        with pytest.raises(AssertionError):
            close(step, added)
        return mark
    close(step, added)
    return "yes" if len(whole) == case.model.n_layers - 1 else _where_it_is(case, "attn", means["attn"])


def _refused(case: Case, site: str) -> str:
    """The mark of a site that no layer has, once it is seen to be refused."""
    with pytest.raises(EmolabError, match=f"hook point for the site '(attn|{site})'; leave this site out"):
        response_means(case.model, case.responses(), sites=(site,))
    return "i"


def _where_it_is(case: Case, site: str, values) -> str:
    """The mark of hybrids, once their layers without the site are seen to be zero, and no others."""
    filled = np.flatnonzero(np.abs(np.asarray(values)).max((0, *range(2, values.ndim))))
    assert filled.tolist() == site_layers(case.model, site)
    return "g"


def _rescaled(model: Model) -> bool:
    """Whether what attention hands on is changed before it is added."""
    layer = site_layers(model, "attn")[0]
    return not site_hooks(model, "attn", [layer])[0].startswith(f"blocks.{layer}.attn.")


def _has_modules(model: Model, site: str) -> bool:
    return hf_modules(model, site, site_layers(model, site)) is not None


def heads_sum_to_attention(case: Case) -> str:
    """Head vectors sum to `attn`; steering with them works."""
    if "head" not in case.sites:
        return _refused(case, "head")
    vectors = extract_vectors(case.model, case.responses(), sites=("attn", "head"))
    layers = site_layers(case.model, "head")
    close(vectors.get("head")[:, layers].sum(2), vectors.get("attn")[:, layers])
    assert vectors.get("head")[:, layers].abs().amax(-1).min() > 0, "a head without vector"
    steering = Steering(case.vectors, {"joy": 1.0}, site="head")
    if not _rescaled(case.model):
        generate(case.model, QUERIES[:1], steering=steering, max_new_tokens=1)
        return "yes" if len(layers) == case.model.n_layers else _where_it_is(case, "head", vectors.get("head"))
    with pytest.raises(EmolabError, match='use site="attn"'):
        generate(case.model, QUERIES[:1], steering=steering)
    return "b" if _has_modules(case.model, "attn") else "c"


def batched_equals_single(case: Case) -> str:
    """Answers (steered, too), activations and log-probabilities of a batch are those of each row alone."""
    model, steering = case.model, Steering(case.vectors, {"joy": 1.0})
    assert len(set(case.greedy)) == 3 and all(case.greedy)
    assert case.greedy == [generate(model, q, max_new_tokens=NEW, writing=UNPENALISED)[0] for q in QUERIES]
    moved = generate(model, QUERIES, steering=steering, max_new_tokens=NEW, writing=UNPENALISED)
    alone = [generate(model, q, steering=steering, max_new_tokens=NEW, writing=UNPENALISED)[0] for q in QUERIES]
    assert moved == alone != case.greedy
    together, apart = (response_means(model, case.responses(), sites=case.sites, batch_size=n) for n in (6, 1))
    for site in together.sites:
        close(together.means[site], apart.means[site], case.family.rounding)
    prompts, texts = case.prompts["neutral"], TEXTS["joy"]
    for pair in zip(*(token_logprobs(model, prompts, texts, batch_size=n) for n in (3, 1)), strict=True):
        np.testing.assert_allclose(*pair, atol=1e-4)
    return "yes"


def padding_changes_nothing(case: Case) -> str:
    """Logits of a row padded left, right and not at all are equal, on the bridge and on the plain model."""
    model = case.model
    batch = encode(model, case.prompts["neutral"])
    lengths = batch.attention_mask.sum(1).tolist()
    assert len(set(lengths)) == 3
    shift = [batch.prompt_len - n for n in lengths]
    parts = (batch.input_ids, batch.attention_mask, batch.response_mask)
    rolled = (torch.stack([row.roll(-s) for row, s in zip(x, shift, strict=True)]) for x in parts)
    right = Batch(*rolled, batch.prompt_len)
    with torch.inference_mode():
        for runner in (model.hf, model.bridge.original_model):
            a, b = (forward(model, runner, x, x.prompt_len) for x in (batch, right))
            for i, (prompt, n) in enumerate(zip(case.prompts["neutral"], lengths, strict=True)):
                alone = forward(model, runner, encode(model, [prompt]), n)[0]
                close(a[i, -n:], alone, case.family.rounding), close(b[i, :n], alone, case.family.rounding)
    return "yes"


def cached_equals_uncached(case: Case) -> str:
    """The cache changes no answer, steered at every third token of a span, too."""
    for steering in (None, Steering(case.vectors, {"joy": 1.0, "anger": -0.5}, positions=slice(2, 40, 3), op="clamp")):
        cached = generate(case.model, QUERIES, steering=steering, max_new_tokens=NEW)
        with uncached():
            assert generate(case.model, QUERIES, steering=steering, max_new_tokens=NEW) == cached
    return "yes"


@contextmanager
def _block_inputs(root: Any, family: Family) -> Iterator[dict[int, torch.Tensor]]:
    """What enters each block, and under the number of layers what leaves the last one."""
    seen: dict[int, torch.Tensor] = {}

    def keep(i):
        def hook(module, args, kwargs):
            seen[i] = (args[0] if args else kwargs["hidden_states"]).clone()

        return hook

    modules = [*root.get_submodule(family.layers), root.get_submodule(family.norm)]
    handles = [m.register_forward_pre_hook(keep(i), with_kwargs=True) for i, m in enumerate(modules)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _output(model: Model, site: str, layer: int) -> Iterator[list[torch.Tensor]]:
    """What a site hands on, on the plain model where it is a module there, else on the bridge."""
    out: list[torch.Tensor] = []

    def keep(module, args, y):
        out.append((y[0] if isinstance(y, tuple) else y).clone())

    modules = hf_modules(model, site, [layer])
    if modules is None:
        [name] = site_hooks(model, site, [layer])
        with model.bridge.hooks(fwd_hooks=[(name, lambda x, hook: out.append(x.clone()))]):
            yield out
        return
    [(module, side)] = modules
    assert side == "output"
    handle = module.register_forward_hook(keep)
    try:
        yield out
    finally:
        handle.remove()


def steering_is_local(case: Case) -> str:
    """At every site the layer moves by exactly the vector (to the bit), at steered tokens; before it nothing moves."""
    model, layer, batch, spans = case.model, 1, *case.batch()
    mixes = any("expert" in key for key in case.family.fields)
    for site in case.sites:
        if site == "head" and _rescaled(model):
            continue
        steering = Steering(case.vectors, {"joy": 1.0}, site=site, layers=[layer])
        where = "attn" if site == "head" else site
        plain = _has_modules(model, where)
        root = model.hf if plain else model.bridge.original_model
        runs = []
        for steerings in ([None], [steering]):
            with (
                torch.inference_mode(),
                hooked(model, build_edits(model, steerings, spans), plain=plain),
                _block_inputs(root, case.family) as seen,
                _output(model, where, layer) as out,
            ):
                forward(model, root, batch, 1)
            runs.append((dict(seen), out[0].reshape(seen[0].shape)))  # some hand on all tokens in one line
        (before, unmoved), (after, moved) = runs
        expected = unmoved.clone()
        expected[:, -1] += steering.table()[layer]
        assert torch.equal(moved, expected), site
        for i in range(layer + 1):
            assert torch.equal(before[i], after[i]), (site, i)
        others, moved_others = before[layer + 1][:, :-1], after[layer + 1][:, :-1]
        if mixes:  # the steered token goes to other experts, whose products are rounded by how many tokens they take
            close(moved_others, others, 1e-6)
        else:
            assert torch.equal(moved_others, others)
        changed = after[layer + 1][:, -1] - before[layer + 1][:, -1]
        assert (changed != 0).any(1).all(), site
        if site == "resid":
            assert torch.equal(after[layer + 1], expected)
    return "yes"


def rows_are_steered_apart(case: Case) -> str:
    """Rows of one batch with different steering, and none, answer as each alone; rows with the same prompt, too."""
    site = "attn" if "attn" in case.sites else "resid"
    steerings = [
        Steering(case.vectors, {"joy": 2.0}, site=site),
        None,
        Steering(case.vectors, {"anger": 1.0, "joy": -2.0}, op="clamp", positions="all"),
    ]
    rows = list(zip(QUERIES, steerings, strict=True))
    options = {"max_new_tokens": NEW, "writing": UNPENALISED}
    together = generate(case.model, QUERIES, steering=steerings, **options)
    assert together == [generate(case.model, q, steering=s, **options)[0] for q, s in rows]
    assert [a == b for a, b in zip(together, case.greedy, strict=True)] == [False, True, False]
    doses = [
        None,
        Steering(case.vectors, {"joy": 2.0}, site=site),
        Steering(case.vectors, {"joy": 3.0}, site=site, op="rotate"),
        Steering(
            case.vectors, {"joy": 0.0, "anger": 0.0}, layers=[1], op="cap", when=When(case.vectors, "joy", 0, above=0.0)
        ),
    ]
    grid = [(q, s) for s in doses for q in QUERIES]  # prompts are read once for all their rows, where that can be
    asked, steered = ([pair[i] for pair in grid] for i in (0, 1))
    together = generate(case.model, asked, steering=steered, **options)
    assert together == [generate(case.model, q, steering=s, **options)[0] for q, s in grid]
    return "yes"


def bridge_and_twin_write_the_same(case: Case) -> str:
    """The bridge and its plain twin write the same greedy tokens, steered at each site."""
    model, batch, spans = case.model, *case.batch()
    plain = greedy(model.hf, batch)
    for site, positions in (("resid", "all"), ("attn", "generated"), ("mlp", "generated")):
        if site not in case.sites:
            continue
        steering = Steering(case.vectors, {"joy": 1.0, "anger": -0.5}, site=site, positions=positions)
        tokens = []
        for on_twin, runner in ((True, model.hf), (False, model.bridge.original_model)):
            if not on_twin or _has_modules(model, site):
                with hooked(model, build_edits(model, [steering], spans, cached=True), plain=on_twin):
                    tokens.append(greedy(runner, batch))
        assert torch.equal(tokens[0], tokens[-1]), (site, positions)
        assert tokens[0].shape == plain.shape and not torch.equal(tokens[0], plain), (site, positions)
    return "yes" if all(_has_modules(model, site) for site in case.sites) else "c"


def chat_template_is_applied_once(case: Case) -> str:
    """Ids are those of `apply_chat_template`, BOS once; emotion adds its instruction and nothing else."""
    model, tok = case.model, AutoTokenizer.from_pretrained(case.directory)
    for plain, joy in zip(*case.prompts.values(), strict=True):
        n = len(joy) - len(plain)
        added = [joy[i : i + n] for i in range(len(plain) + 1) if joy[:i] + joy[i + n :] == plain]
        assert any("Answer with joy." in text for text in added), (plain, joy)
    ids = [encode(model, [p]).input_ids[0].tolist() for p in case.prompts["neutral"]]
    if not case.family.chat:
        assert ids == [tok(q + "\n").input_ids for q in QUERIES]
        return "d"
    template = tok.chat_template
    for code, day in TODAY.items():
        template = re.sub(rf"strftime_now\(.{code}.\)", f"'{day}'", template)

    def theirs(*turns: tuple[str, str], **options) -> Any:
        chat = [{"role": role, "content": text} for role, text in turns]
        options |= {"chat_template": template, "enable_thinking": False, "return_dict": False}
        return tok.apply_chat_template(chat, add_generation_prompt=True, **options)

    final = "<|channel|>final<|message|>" if case.name == "gpt-oss" else ""  # else it reasons first
    assert ids == [theirs(("user", q)) + tok(final, add_special_tokens=False).input_ids for q in QUERIES]
    # Granite's one token ends its turns, too; Seed-OSS begins each turn with BOS.
    if tok.bos_token_id not in (None, tok.eos_token_id) and case.name != "Seed-OSS":
        assert all(tok.bos_token_id not in row[1:] for row in ids)
    own = [theirs(("user", f"Answer with joy. {q}"), tokenize=False) for q in QUERIES]
    try:
        system = [theirs(("system", "Answer with joy."), ("user", q), tokenize=False) for q in QUERIES]
    except TemplateError:
        assert case.prompts["joy"] == own
        return "f"
    if "You are " in case.prompts["neutral"][0] and "You are " not in system[0]:  # Qwen, Granite
        assert case.prompts["joy"] == own
        return "e"
    assert case.prompts["joy"] == [prompt + final for prompt in system]
    return "yes"


def end_tokens_of_generation_config_count(case: Case) -> str:
    """Answers end at the tokens that generation_config.json alone names."""
    model, tok = case.model, case.model.tokenizer
    stops = [tok.convert_tokens_to_ids(t) for t in (case.family.eos, case.family.stop) if t]
    told = [i for i in turn_ends(tok) if i not in stops]  # Nemotron's next turn begins right behind an answer
    assert model.eos_ids == [*stops, *told]  # config.json knows the first only
    batch, _ = case.batch()
    rows = greedy(model.hf, batch)[:, batch.prompt_len :].tolist()
    row, stop = next((r, i) for r, ids in enumerate(rows) for i in range(1, NEW) if ids[i] not in ids[:i])
    config = model.hf.generation_config
    try:
        config.eos_token_id = [*stops, rows[row][stop]]
        short = generate(model, QUERIES, max_new_tokens=NEW, writing=UNPENALISED)[row]
    finally:
        config.eos_token_id = stops
    assert short == tok.decode(rows[row][:stop], skip_special_tokens=True).strip() != case.greedy[row]
    return "yes"


def bfloat16_is_near(case: Case) -> str:
    """In bfloat16: same fingerprint, activations within rounding, steering works on both models."""
    half = load_model(case.directory, device="cpu", dtype="bfloat16")
    assert half.fingerprint == case.model.fingerprint and half.dtype == half.bridge.cfg.dtype == torch.bfloat16
    exact, rounded = (response_means(m, case.responses(), sites=case.sites) for m in (case.model, half))
    least = 0.97 if any("expert" in key for key in case.family.fields) else 0.995  # rounding sends tokens elsewhere
    for site in case.sites:
        layers = site_layers(half, site)
        a, b = (torch.from_numpy(m.means[site][:, layers]).double().flatten(2).flatten(0, 1) for m in (exact, rounded))
        assert torch.nn.functional.cosine_similarity(a, b, dim=-1).mean() > least, site
    options = {"max_new_tokens": NEW, "writing": UNPENALISED}
    options |= {"steering": Steering(case.vectors, {"joy": 2.0}, positions="all")}
    assert generate(half, QUERIES, **options) != generate(half, QUERIES, max_new_tokens=NEW, writing=UNPENALISED)
    users = load_model(half.bridge, tokenizer=half.tokenizer)  # another rounding: eager attention
    assert len(generate(users, QUERIES, **options)) == 3
    return "yes"


CHECKS = {
    "vectors = hidden states": vectors_equal_hidden_states,
    "attn + mlp = step": attention_and_mlp_are_what_a_block_adds,
    "heads sum to attn": heads_sum_to_attention,
    "batched = single": batched_equals_single,
    "padding": padding_changes_nothing,
    "cached = uncached": cached_equals_uncached,
    "steering local": steering_is_local,
    "steering by row": rows_are_steered_apart,
    "bridge = twin": bridge_and_twin_write_the_same,
    "chat template once": chat_template_is_applied_once,
    "end tokens": end_tokens_of_generation_config_count,
    "bfloat16": bfloat16_is_near,
}
