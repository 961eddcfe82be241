"""Whatever template a model ships: BOS once as one token, the query and the instruction whole and once, words words."""

from __future__ import annotations

import copy
import warnings

import pytest

import emolab
from emolab.answers.generation import generate
from emolab.base.errors import EmolabError
from emolab.models.load import load_model
from emolab.models.prompts import encode, prompt_ids, render_conversation, render_prompts, text_ids
from emolab.models.templates import turn_ends
from tests import chat_templates, families, tiny

QUERY = "what did you feel when it was cold ?"
CHAT = tiny.CHAT
OPEN = "{% for m in messages %}<{{ m['role'] }}>"
CLOSE = "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
PARTS = OPEN + "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}" + CLOSE
NEVER_OPENS = OPEN + "{{ m['content'] }}<eos>{% endfor %}"


def with_chat(hf, chat, **options):
    return load_model((hf, tiny.tokenizer(chat=chat, **options)))


@pytest.mark.parametrize(
    "chat",
    [
        CHAT,
        PARTS,
        OPEN + "{% if m['content'] is string %}{{ raise_exception('parts only') }}{% endif %}{{ m['content'][0].text }}"
        + CLOSE,
        OPEN + "{{ m['content'] | trim }}" + CLOSE,
        OPEN + "{{ m.content if m.content is string else m.content[0].text }}" + CLOSE,
    ],
    ids=["texts", "parts", "parts or an error", "trimmed", "either"],
)  # fmt: skip
def test_the_query_stands_in_the_prompt_once_and_whole(tiny_llama, chat):
    model = with_chat(tiny_llama.hf, chat)
    for query in (QUERY, "  how ?\n", "a {query} of {{ m }} and {% if %}", "what is 'x' & <b>y</b> ?"):
        plain, joy = render_prompts(model, [query]) + render_prompts(model, [query], "joy")
        inner = query.strip() if "trim" in chat else query
        assert plain == f"<bos><user>{inner}<assistant>"
        assert joy == f"<bos><system>Answer with joy.<user>{inner}<assistant>"


@pytest.mark.parametrize(
    "chat, cause",
    [
        (OPEN + CLOSE, "puts a user's turn 0 times into the prompt"),
        (OPEN + "{{ m['content'] }} {{ m['content'] }}" + CLOSE, "puts a user's turn 2 times"),
        (OPEN + "{{ m['content'] | lower }}" + CLOSE, "puts a user's turn 0 times"),
        (OPEN + "{{ m['content'][:27] }}" + CLOSE, "does not hold the turn"),
        (OPEN + "{{ m['content'] | replace('feel', 'see') }}" + CLOSE, "does not hold the turn 'what did you feel"),
        (OPEN + "{{ m['content'].split('did')[-1] }}" + CLOSE, "does not hold the turn"),
        ("{{ raise_exception('not today') }}", "not today"),
        ("{% if %}", "Expected an expression"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
    ],
)  # fmt: skip
def test_a_template_that_does_not_hold_the_query_is_refused_in_one_line(tiny_llama, chat, cause):
    model = with_chat(tiny_llama.hf, chat)
    for call in (
        lambda: render_prompts(model, [QUERY]),
        lambda: emolab.collect_responses(model, [QUERY], emotions=("joy",), max_new_tokens=1),
    ):
        with pytest.raises(EmolabError, match="the chat template of .* cannot be used .*load_model") as error:
            call()
        assert cause in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_prompt_ends_where_an_answer_begins(tiny_llama):
    """Also of a template that takes no notice of being asked to open the assistant's turn."""
    model = with_chat(tiny_llama.hf, NEVER_OPENS)
    assert render_prompts(model, [QUERY, "how ?"]) == [f"<bos><user>{q}<eos><assistant>" for q in (QUERY, "how ?")]
    assert render_prompts(model, ["how ?"], "joy") == ["<bos><system>Answer with joy.<eos><user>how ?<eos><assistant>"]
    inst = families.tokenizer(families.FAMILIES["Mistral"])
    mistral = load_model((tiny.build(tiny.llama_config(vocab_size=len(inst))), inst))
    assert render_prompts(mistral, ["How?"]) == ["<s>[INST] How?[/INST]"], "white space is the answer's to write"


def test_what_a_user_writes_is_words(tiny_llama, smollm2):
    """In a query, in a label, in a text: as the tokenizer itself reads it with `split_special_tokens`."""
    query = "What does <|im_end|> or <|im_start|>system mean, <|im_end|>?"
    tokenizer = smollm2.tokenizer
    words = tokenizer(query, add_special_tokens=False, split_special_tokens=True).input_ids
    plain, joy = (prompt_ids(smollm2, render_prompts(smollm2, ["What?"], c))[0] for c in ("neutral", "joy"))
    at = len(plain) - 8  # What ? <|im_end|> \n <|im_start|> ass istant \n
    assert prompt_ids(smollm2, render_prompts(smollm2, [query]))[0] == plain[:at] + words + plain[at + 2 :]
    assert text_ids(smollm2, [query]) == [words] and tokenizer.decode(words) == query
    labelled = encode(smollm2, render_prompts(smollm2, ["What?"], "joy<|im_end|>")).input_ids[0].tolist()
    assert labelled.count(tokenizer.eos_token_id) == joy.count(tokenizer.eos_token_id) and len(labelled) > len(joy)
    for prompt in render_prompts(tiny_llama, ["what is <assistant> ?"]):
        ids = encode(tiny_llama, [prompt], ["and <eos> <user>"]).input_ids[0].tolist()
        assert [ids.count(i) for i in range(7)] == [1, 0, 0, ids.count(3), 0, 1, 1]
    with warnings.catch_warnings(action="error"):
        assert generate(smollm2, [query], max_new_tokens=2) != generate(smollm2, ["What?"], max_new_tokens=2)
    complete = "<|im_start|>user\nHi<|im_end|>\n"
    assert prompt_ids(smollm2, [complete]) == tokenizer([complete], add_special_tokens=False).input_ids


def test_sequences_begin_with_whatever_the_tokenizer_puts_first(tiny_llama):
    words = tiny.tokenizer(chat=None)
    from tokenizers import processors

    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<system> <user> $A <eos>", special_tokens=[("<system>", 4), ("<user>", 5), ("<eos>", 1)]
    )
    model = load_model((tiny_llama.hf, words))
    assert model.start == "<system><user>" and render_prompts(model, ["how ?"]) == ["<system><user>how ?\n"]
    assert encode(model, [""], ["a dog"]).input_ids.tolist() == [[4, 5, *text_ids(model, ["a dog"])[0]]]


def test_a_bos_that_is_no_token_is_refused(tiny_llama):
    words = tiny.tokenizer(add_bos=False)
    words._special_tokens_map["bos_token"] = "<start of text>"
    with pytest.raises(EmolabError, match="does not read its BOS '<start of text>' as one token"):
        render_prompts(load_model((tiny_llama.hf, words)), ["how ?"])


def test_turns_before_the_query_stand_in_the_prompt(tiny_llama):
    turns = [("how ?", "so very <eos> good"), ("and then ?", "rain")]
    model = with_chat(tiny_llama.hf, CHAT)
    prompt = render_conversation(model, turns, QUERY)
    assert prompt.replace("\u2060", "") == (
        f"<bos><user>how ?<assistant>so very <eos> good<user>and then ?<assistant>rain<user>{QUERY}<assistant>"
    )
    assert prompt_ids(model, [prompt])[0].count(1) == 0
    first = with_chat(tiny_llama.hf, CHAT.replace("in messages", "in messages[-1:]"))
    with pytest.raises(EmolabError, match="does not hold the turn 'how \\?'"):
        render_conversation(first, turns, QUERY)


@pytest.mark.parametrize("name", ["LLAMA3", "QWEN25", "GEMMA3", "PHI3", "HARMONY"])
def test_every_end_of_an_assistants_turn_is_known(name):
    ends = {"LLAMA3": ["<|eot_id|>"], "QWEN25": ["<|im_end|>"], "GEMMA3": ["<end_of_turn>"], "PHI3": ["<|end|>"]}
    words = tiny.tokenizer(chat=getattr(chat_templates, name))
    known = ends.get(name, ["<|return|>", "<|end|>"])
    words.add_special_tokens({"additional_special_tokens": known})
    assert {words.decode(i) for i in turn_ends(words)} <= {*known} and turn_ends(words)


def test_the_tokenizers_own_object_is_left_alone(tiny_llama):
    words = tiny.tokenizer()
    before = copy.deepcopy(words.__dict__.get("chat_template"))
    render_prompts(load_model((tiny_llama.hf, words)), ["a <eos> b"])
    assert words.chat_template == before and words("<eos>", add_special_tokens=False).input_ids == [1]
