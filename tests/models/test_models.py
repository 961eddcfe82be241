"""Loading, prompts, batches and hook points."""

import copy
import logging
import warnings

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from emolab.answers.generation import generate
from emolab.base.errors import EmolabError
from emolab.models.load import load_model
from emolab.models.model import Model, fingerprint_of, weights_digest
from emolab.models.prompts import encode, instruction, plan_batches, render_prompts
from emolab.models.sites import hf_modules, site_hooks
from tests import chat_templates, tiny

QUERY = "tell me about the park ."


def changed(model: Model, tok) -> Model:
    """The same model with another tokenizer."""
    return Model(model.name, model.source, None, model.bridge, model.hf, tok, model.fingerprint)


def test_bridge_equals_hf_and_shares_its_weights(tiny_llama, tiny_gpt2):
    for model in (tiny_llama, tiny_gpt2):
        batch = encode(model, [QUERY])
        ours, plain = model(batch.input_ids), model.hf(batch.input_ids).logits
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    assert {p.data_ptr() for p in tiny_llama.hf.parameters()} == {p.data_ptr() for p in tiny_llama.bridge.parameters()}


def test_delegates_to_the_bridge(tiny_llama):
    assert tiny_llama.cfg is tiny_llama.bridge.cfg and tiny_llama.W_E.shape[1] == tiny_llama.d_model
    assert (tiny_llama.n_layers, tiny_llama.n_heads, tiny_llama.d_model, tiny_llama.d_head) == (3, 4, 32, 8)
    with pytest.raises(AttributeError):
        tiny_llama.no_such_thing  # noqa: B018


def test_every_way_to_load_gives_the_same_model(tiny_llama, tiny_llama_dir, tiny_gpt2):
    hf, tok = tiny.build(tiny.llama_config()), tiny.tokenizer()
    pair = load_model((hf, tok))
    bridge = load_model(tiny_llama.bridge, tokenizer=tok)
    half = load_model(str(tiny_llama_dir), dtype=torch.bfloat16, device="cpu")
    assert {m.fingerprint for m in (pair, bridge, half)} == {tiny_llama.fingerprint}
    assert load_model(pair) is pair and pair.hf is hf and bridge.bridge is tiny_llama.bridge
    assert half.dtype == torch.bfloat16 == half.bridge.cfg.dtype
    assert tok.padding_side == "right", "the user's tokenizer was changed"
    assert load_model(tiny_gpt2.bridge).fingerprint == tiny_gpt2.fingerprint  # fused QKV, split copies in the bridge
    ids = encode(pair, [QUERY]).input_ids
    assert torch.equal(pair(ids), tiny_llama(ids))


def test_fingerprint_tells_models_apart(tiny_llama, smollm2):
    assert load_model((tiny.build(tiny.llama_config(), seed=1), tiny.tokenizer())).fingerprint != tiny_llama.fingerprint
    tuned = copy.deepcopy(smollm2.hf)
    weight = tuned.model.layers[3].self_attn.o_proj.weight
    change = torch.randn(len(weight), 4, generator=torch.manual_seed(0)) @ torch.randn(4, len(weight))
    weight.data += 1e-3 * weight.std() * change  # one matrix of 210, by a thousandth
    assert fingerprint_of(tuned) != smollm2.fingerprint and weights_digest(tuned) != smollm2.digest


@pytest.mark.parametrize(
    "chain",
    [(torch.float16,), (torch.bfloat16,), (torch.float16, torch.bfloat16), (torch.bfloat16, torch.float16),
     (torch.float64,)],
)  # fmt: skip
def test_a_fingerprint_is_that_of_a_checkpoint_however_it_was_rounded(smollm2, chain):
    """Weights of float32 that are rounded twice are others than when rounded once."""
    rounded = copy.deepcopy(smollm2.hf)
    for dtype in chain:
        rounded = rounded.to(dtype)
    assert fingerprint_of(rounded) == smollm2.fingerprint and weights_digest(rounded) != smollm2.digest


def test_loading_leaves_loggers_and_warnings_alone(tiny_llama_dir):
    level, filters = logging.getLogger("transformers").level, list(warnings.filters)
    load_model(tiny_llama_dir, device="cpu")
    assert logging.getLogger("transformers").level == level and warnings.filters == filters


def test_unknown_dtype_and_compatibility_mode(tiny_llama_dir):
    with pytest.raises(EmolabError, match="bfloat16"):
        load_model(tiny_llama_dir, dtype="float23")
    bridge = TransformerBridge.boot_transformers(str(tiny_llama_dir), device="cpu")
    bridge.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(EmolabError, match="compatibility mode"):
        load_model(bridge)


DROPS_SYSTEM = tiny.CHAT.replace("for m in messages", "for m in messages if m['role'] != 'system'")
WANTS_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('need system') }}{% endif %}" + tiny.CHAT
NO_BOS = tiny.CHAT.replace("{{ bos_token }}", "")
PLAIN, JOY = f"<user>{QUERY}<assistant>", f"<system>Answer with joy.<user>{QUERY}<assistant>"
IN_USER_TURN = f"<user>Answer with joy. {QUERY}<assistant>"


@pytest.mark.parametrize(
    ("chat", "neutral", "joy"),
    [
        (tiny.CHAT, PLAIN, JOY),
        (NO_BOS, PLAIN, JOY),
        ("{{ bos_token }}" + tiny.CHAT, PLAIN, JOY),
        (tiny.NO_SYSTEM_CHAT, PLAIN, IN_USER_TURN),
        (DROPS_SYSTEM, PLAIN, IN_USER_TURN),
        (WANTS_SYSTEM, "<system>" + PLAIN, JOY),
        (None, f"{QUERY}\n", f"Answer with joy. {QUERY}\n"),
    ],
    ids=["chat", "no BOS", "BOS twice", "refuses system", "drops system", "wants system", "no chat"],
)
def test_prompts_of_every_kind_of_template_start_with_bos_once(tiny_llama, chat, neutral, joy):
    for adds_bos in (True, False):
        model = changed(tiny_llama, tiny.tokenizer(chat=chat, add_bos=adds_bos))
        prompts = [*render_prompts(model, [QUERY]), *render_prompts(model, [QUERY], "joy")]
        has_bos = adds_bos or (chat not in (None, NO_BOS))
        assert bool(model.start_ids) == adds_bos and prompts == ["<bos>" * has_bos + text for text in (neutral, joy)]
        ids = encode(model, prompts).input_ids
        assert (ids == 0).sum(1).tolist() == [has_bos] * 2
    assert tiny_llama.tokenizer.chat_template == tiny.CHAT == tiny_llama.bridge.tokenizer.chat_template


@pytest.mark.parametrize("chat", [chat_templates.QWEN25, chat_templates.GRANITE])
def test_a_system_prompt_of_the_template_stays(tiny_llama, chat):
    """These templates drop theirs as soon as another is given: vectors would hold its loss beside the emotion."""
    model = changed(tiny_llama, tiny.tokenizer(chat=chat, add_bos=False))
    [plain], [joy] = render_prompts(model, [QUERY]), render_prompts(model, [QUERY], "joy")
    assert "You are " in plain and joy == plain.replace(QUERY, f"Answer with joy. {QUERY}")
    given = [{"role": "system", "content": "Answer with joy."}, {"role": "user", "content": QUERY}]
    assert "You are " not in model.tokenizer.apply_chat_template(given, tokenize=False)


def with_template(template, **options):
    words = tiny.tokenizer()
    words.chat_template = template
    return load_model((tiny.build(tiny.llama_config()), words), **options)


def test_one_of_several_chat_templates_is_chosen():
    named = {"rag": "<user>rag {{ messages[0]['content'] }}", "tool_use": "<user>tool {{ messages[0]['content'] }}"}
    with pytest.raises(EmolabError, match="has the chat templates rag, tool_use, .*expected one of .*'rag'"):
        with_template(named)
    with pytest.raises(EmolabError, match="chat_template is 'other'"):
        with_template(named, chat_template="other")
    assert render_prompts(with_template(named, chat_template="tool_use"), ["hi"]) == ["<bos><user>tool hi"]
    assert render_prompts(with_template(named | {"default": tiny.CHAT}), ["hi"]) == ["<bos><user>hi<assistant>"]
    own = with_template(tiny.CHAT, chat_template="{{ messages[0]['content'] }}!")
    assert render_prompts(own, ["hi"]) == ["<bos>hi!"]
    with pytest.raises(EmolabError, match="has no chat templates by name, .*expected None, or a template's text"):
        with_template(None, chat_template="rag")


def test_dates_in_templates_are_fixed(tiny_llama):
    """Else tomorrow's prompts, and the hash that a run is resumed by, would be others than today's."""
    dates = {"LLAMA3": "26 Jul 2024", "GRANITE": "July 26, 2024", "HARMONY": "2024-07-26"}
    for name, day in dates.items():
        model = changed(tiny_llama, tiny.tokenizer(chat=getattr(chat_templates, name)))
        with warnings.catch_warnings(action="ignore"):  # HARMONY's: of reasoning
            prompt = render_prompts(model, [QUERY])[0]
        assert prompt.count(day) == 1 and "strftime_now" in model.tokenizer.chat_template


def test_templates_and_intensity(tiny_llama, tiny_gpt2):
    templates = {"neutral": "Q: {query}", "calm": "Be calm. {query} {x}"}
    assert render_prompts(tiny_gpt2, [QUERY], "calm", templates=templates) == [f"Be calm. {QUERY} {{x}}"]
    assert render_prompts(tiny_llama, [QUERY], templates=templates) == [f"<bos><user>Q: {QUERY}<assistant>"]
    assert "Answer with great joy." in render_prompts(tiny_llama, [QUERY], "joy", intensity="great")[0]
    assert instruction("fear", "a little") == "Answer with a little fear."
    assert render_prompts(tiny_gpt2, [QUERY], "joy") == [f"Answer with joy. {QUERY}\n"]
    for given, match in (
        ({"condition": "joy", "templates": templates}, "query"),
        ({"templates": {"neutral": "x"}}, "query"),
        ({"condition": "joy", "intensity": "much"}, "intensity"),
    ):
        with pytest.raises(EmolabError, match=match):
            render_prompts(tiny_llama, [QUERY], **given)


def test_encode_pads_left_and_marks_the_text(tiny_llama):
    batch = encode(tiny_llama, ["<bos> tell me", "<bos> tell"], ["a walk in rain", "sun"])
    assert batch.attention_mask.tolist() == [[1] * 7, [0, 0, 0, 0, 1, 1, 1]]
    assert batch.response_mask.sum(1).tolist() == [4, 1] and batch.response_mask[:, -1].all()
    assert batch.input_ids[1, :4].tolist() == [2] * 4 and batch.prompt_len == 3
    alone = encode(tiny_llama, [""], ["sun"])
    assert alone.input_ids.tolist()[0][0] == 0 and alone.response_mask.tolist() == [[False, True]]
    assert encode(tiny_llama, ["<bos> tell"]).response_mask.sum() == 0


def test_encode_refuses(tiny_llama, tiny_gpt2):
    with pytest.raises(EmolabError, match="row 1 has no token"):
        encode(tiny_gpt2, ["tell", ""])
    with pytest.raises(EmolabError, match="does not fit"):
        encode(tiny_gpt2, ["tell " * 97])
    with pytest.raises(EmolabError, match="as many"):
        encode(tiny_llama, ["tell"], [])


def test_plan_batches(tiny_llama):
    lengths = [5, 1, 9, 2, 5]
    assert plan_batches(tiny_llama, lengths, 2) == [[1, 3], [0, 4], [2]]
    assert [len(b) for b in plan_batches(tiny_llama, [10] * 200)] == [128, 72]
    mixed = [1000, 4000] * 40
    for cached, tokens in ((True, 16_384), (False, 2048)):
        plan = plan_batches(tiny_llama, mixed, cached=cached)
        assert all(len(batch) * max(mixed[i] for i in batch) <= tokens for batch in plan if len(batch) > 1)
        assert max(map(len, plan)) == tokens // 1000
    assert sorted(i for b in plan_batches(tiny_llama, lengths) for i in b) == list(range(5))
    with pytest.raises(EmolabError, match="batch_size"):
        plan_batches(tiny_llama, lengths, 0)


def test_end_of_answer_ids():
    words = tiny.tokenizer(chat=tiny.CHAT.replace("{% endfor %}", "<eos>{% endfor %}"))
    model = load_model((tiny.build(tiny.llama_config()), words))
    assert model.eos_ids == [1]
    model.hf.generation_config.eos_token_id = [1, 6]
    assert model.eos_ids == [1, 6]
    model.hf.generation_config.eos_token_id = 0
    assert model.eos_ids == [0, 1], "the config's and the tokenizer's count beside generation_config's"
    model.hf.generation_config.eos_token_id = model.hf.config.eos_token_id = None
    assert model.eos_ids == [model.tokenizer.eos_token_id]
    model.tokenizer.eos_token_id = None
    assert model.eos_ids == [1], "the template's"
    bare = load_model((model.hf, tiny.tokenizer(chat=None)))
    bare.tokenizer.eos_token_id = None
    assert bare.eos_ids == []


TURNS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}ENDS{% endfor %}"


@pytest.mark.parametrize("ends, ids", [("\n<pad>\n", [2]), (" the end .", []), ("\n", [5]), ("", [5])])
def test_the_token_behind_an_assistants_turn_ends_an_answer(ends, ids):
    words = tiny.tokenizer(chat=TURNS.replace("ENDS", ends))
    assert load_model((tiny.build(tiny.llama_config()), words)).eos_ids == [1, *ids]


def test_an_answer_ends_where_the_template_ends_a_turn(smollm2):
    """Config, generation_config and tokenizer name another token: only the template knows what ends a turn."""
    hf, words = copy.deepcopy(smollm2.hf), copy.deepcopy(smollm2.tokenizer)
    hf.config.eos_token_id = hf.generation_config.eos_token_id = 0
    words.eos_token = "<|endoftext|>"
    model = load_model((hf, words))
    assert model.eos_ids == [0, 2]
    assert generate(model, "What is the capital of France?", max_new_tokens=20) == ["The capital of France is Paris."]


def test_hook_points_and_modules_are_the_same_points(tiny_llama, tiny_gpt2):
    assert site_hooks(tiny_llama, "attn")[1] == "blocks.1.attn.hook_out"
    for model in (tiny_llama, tiny_gpt2):
        ids, seen = encode(model, [QUERY]).input_ids, {}
        for site in ("resid", "attn", "mlp", "head"):
            for layer, (module, side) in enumerate(hf_modules(model, site)):

                def keep(m, args, output, key=(site, layer), side=side, seen=seen):
                    x = args[0] if side == "input" else output
                    seen[key] = x[0] if isinstance(x, tuple) else x

                handle = module.register_forward_hook(keep)
                model.hf(ids)
                handle.remove()
        _, cache = model.run_with_cache(ids)
        for (site, layer), value in seen.items():
            name = site_hooks(model, site)[layer]
            torch.testing.assert_close(cache[name].flatten(2), value, atol=1e-5, rtol=1e-5, msg=f"{site} {layer}")
    with pytest.raises(EmolabError, match="unknown site 'residual'; expected one of resid, attn, mlp, head"):
        site_hooks(tiny_llama, "residual")
    assert hf_modules(load_model(tiny_llama.bridge), "resid") is None
