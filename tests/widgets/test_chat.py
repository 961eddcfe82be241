"""The chat without a browser: every arm goes on from its own answers, and what it shows is what generate writes."""

from __future__ import annotations

import re
import threading
import time
from html import unescape

import numpy as np
import pandas as pd
import pytest
import torch

import emolab
from emolab.answers.generation import generate, stream
from emolab.base.errors import EmolabError
from emolab.models.prompts import render_conversation, render_prompts
from emolab.steering.settings import Setting
from emolab.steering.steering import Steering
from emolab.widgets import Chat
from emolab.widgets.conversation import Answer, Conversation
from tests import oracle
from tests.tiny import random_vectors

ASKED, THEN = "tell me about the park", "and the sun ?"
ATTN = Setting(site="attn", layers="late")


@pytest.fixture(scope="module")
def model():
    return emolab.load_model(oracle.talker())


@pytest.fixture(scope="module")
def vectors(model):
    return random_vectors(model, ("anger", "fear", "joy"), scale=0.5)


@pytest.fixture
def chat(model, vectors):
    chat = Chat(model, vectors, setting=ATTN, doses={"joy": 2.0}, max_new_tokens=12)
    yield chat
    chat.close()


def said(chat, asked=None):
    chat.ask(asked)
    assert chat.wait(30) and chat._status.value == "", chat._status.value
    return chat.texts


def test_what_is_streamed_is_what_generate_writes(model, vectors):
    steering = Steering(vectors, {"joy": 2.0}, site="attn")
    prompts, seen = render_prompts(model, [ASKED, THEN, ASKED]), []
    ids = stream(
        model, prompts, steering=[steering, None, None], max_new_tokens=9, each=lambda i, s: seen.append((i, s))
    )
    written = generate(model, [ASKED, THEN, ASKED], steering=[steering, None, None], max_new_tokens=9)
    assert [model.tokenizer.decode(row) for row in ids] == written
    assert [i.shape[1] for i, _ in seen] == list(range(len(seen))) and len(seen) == max(map(len, ids))
    for (before, scores), (after, _) in zip(seen, seen[1:], strict=False):
        assert torch.equal(after[:, :-1], before) and torch.equal(after[:, -1], scores.argmax(-1))


@pytest.mark.parametrize("positions", ["generated", "all"])
def test_an_answer_goes_on_as_if_it_had_never_stopped(model, vectors, positions):
    """Also behind steered tokens, which are steered again, not read as a prompt is."""
    steering = Steering(vectors, {"joy": 2.0}, positions=positions)
    prompt = render_prompts(model, [ASKED])[0]
    (whole,) = stream(model, [prompt], steering=[steering], max_new_tokens=12, each=lambda *_: None)
    assert len(whole) == 12
    text = emolab.answers.go_on(model, prompt, whole[:5], steering=steering, max_new_tokens=7)
    assert text == model.tokenizer.decode(whole)
    unsteered = emolab.answers.go_on(model, prompt, whole[:5], max_new_tokens=7)
    assert unsteered != text and unsteered.startswith(model.tokenizer.decode(whole[:5]))


def test_every_arm_goes_on_from_its_own_answers(chat, model):
    first, second = dict(said(chat, ASKED)), said(chat, THEN)
    assert list(second) == ["unsteered", "steered", "random"] and len(set(first.values())) == 3
    for arm, answer in chat.turns[1].answers.items():
        prompt = render_conversation(model, [(ASKED, first[arm])], THEN)
        assert answer.prompt == prompt
        (expected,) = generate(model, prompt, raw=True, steering=answer.steering, max_new_tokens=12)
        assert second[arm] == expected
    assert chat.turns[1].answers["steered"].steering.doses == {"joy": 2.0}


def test_dials_are_kept_by_turn_and_code_writes_the_same(chat, model, vectors):
    said(chat, ASKED)
    chat.dials.sliders["joy"].value, chat.dials.sliders["fear"].value = 0.0, -1.5
    said(chat, THEN)
    assert [turn.answers["steered"].steering.doses for turn in chat.turns] == [{"joy": 2.0}, {"fear": -1.5}]
    lines = chat.code().splitlines()
    for line, turn in zip(lines, chat.turns, strict=True):
        assert eval(line, {"emolab": emolab, "model": model, "vectors": vectors}) == [turn.answers["steered"].text]
    table = chat.transcript()
    assert table["arm"].to_list() == ["unsteered", "steered", "random"] * 2
    assert table.loc[4, ["turn", "asked", "text", "doses"]].to_list() == [
        1,
        THEN,
        chat.texts["steered"],
        {"fear": -1.5},
    ]


def test_tokens_are_read_where_they_are_chosen(chat, model, vectors):
    """At the state before each token, below the steered layers, in standard deviations of neutral texts."""
    said(chat, ASKED)
    layer, above = chat._talk.place(chat.steering)
    assert (layer, above) == (1, True)  # of three layers, late ones begin at 1
    answer, talk = chat.turns[0].answers["unsteered"], chat._talk
    mean, spread = talk._neutral(layer)
    ids = model.tokenizer(answer.prompt, add_special_tokens=False).input_ids
    with torch.no_grad():
        hidden = model.hf(torch.tensor([ids + answer.ids]), output_hidden_states=True).hidden_states[layer + 1][0]
    unit = torch.nn.functional.normalize(vectors.part("specific").get("resid", layer=layer).double(), dim=-1)
    expected = (hidden[len(ids) - 1 : -1].double() @ unit.T).numpy()
    assert answer.scores == pytest.approx((expected - mean) / spread, abs=1e-3)
    by_layer = talk.by_layer(answer, 4).pivot(index="layer", columns="emotion", values="score")
    assert by_layer.loc[layer, list(vectors.emotions)].to_numpy() == pytest.approx(answer.scores[4], abs=1e-3)
    scores = chat.scores()
    assert len(scores) == sum(len(a.ids) for a in chat.turns[0].answers.values()) * 3
    assert "".join(answer.pieces).strip() == answer.text and chat.figure().emolab_data["arm"].nunique() == 3


def test_others_are_the_likeliest_tokens(chat, model):
    said(chat, ASKED)
    answer = chat.turns[0].answers["unsteered"]
    ids = model.tokenizer(answer.prompt, add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model.hf(torch.tensor([ids])).logits[0, -1]
    likely = [i for i in logits.topk(8).indices.tolist() if i != answer.ids[0]][:5]
    assert answer.ids[0] == logits.argmax().item() or answer.ids[0] in logits.topk(8).indices  # the penalty may differ
    assert len(answer.others[0]) == 5 and {i for i, _, _ in answer.others[0]} & set(likely)
    assert all(0 < p < 1 for _, _, p in answer.others[0])


def test_forks_redoing_and_the_way_back(chat, model, vectors):
    said(chat, ASKED)
    said(chat, THEN)
    first, old = dict(chat.transcript().head(3).set_index("arm")["text"]), dict(chat.texts)
    answer = chat.turns[0].answers["steered"]
    other = answer.others[3][0]
    chat.fork(0, "steered", 3, other[0])
    assert chat.wait(30) and len(chat.turns) == 1
    forked = chat.turns[0].answers["steered"]
    assert forked.ids[:4] == [*answer.ids[:3], other[0]] and forked.forced == {3: forked.pieces[3]}
    assert len(forked.scores) == len(forked.ids) == len(forked.others)
    assert forked.scores[:4] == pytest.approx(answer.scores[:4]) and chat.texts["unsteered"] == first["unsteered"]
    assert eval(chat.code(), {"emolab": emolab, "model": model, "vectors": vectors}) == forked.text
    chat.back()
    chat.fork(0, "steered", 5)  # chosen anew: as before, and then as many tokens more
    assert chat.wait(30)
    anew = chat.turns[0].answers["steered"]
    assert anew.ids[:12] == answer.ids and not anew.forced
    assert eval(chat.code(), {"emolab": emolab, "model": model, "vectors": vectors}) == chat.texts["steered"]
    chat.back()
    assert len(chat.turns) == 2 and chat.texts == old
    chat.dials.zero()
    chat.redo(0)
    assert chat.wait(30) and chat.texts == {"unsteered": first["unsteered"]} and len(chat.turns) == 1
    chat.back()
    chat.edit(1, "was it cold ?")
    assert chat.wait(30) and chat.turns[1].asked == "was it cold ?" and len(chat.turns) == 2
    chat.back()
    assert chat.texts == old and chat._buttons["back"].disabled
    for call, words in (
        (lambda: chat.redo(5), "no turn 5; the conversation has 2"),
        (lambda: chat.fork(0, "plain", 0), "no token 0 of 'plain' in this turn; it has unsteered"),
        (lambda: chat.fork(0, "steered", 99), "no token 99 of 'steered'"),
        (lambda: chat.fork(0, "steered", 1, "so very"), "not one token"),
        (lambda: chat.ask("  "), "the prompt is empty"),
    ):
        with pytest.raises(EmolabError, match=words):
            call()
    assert chat.texts == old


def slow(chat, seconds=0.05):
    return chat._talk.model.hf.register_forward_pre_hook(lambda module, args: time.sleep(seconds))


def test_stop_keeps_what_was_written(chat):
    handle = slow(chat)
    chat.ask(ASKED)
    for _ in range(500):
        if chat.turns and len(chat.turns[0].answers["steered"].ids) > 2:
            break
        time.sleep(0.01)
    start = time.perf_counter()
    chat._buttons["stop"].click()
    assert chat.wait(5) and time.perf_counter() - start < 1 and chat._status.value == "stopped"
    written = len(chat.turns[0].answers["steered"].ids)
    assert 2 < written < 12 and chat.texts["steered"] in page_words(chat)
    handle.remove()
    said(chat, THEN)
    assert len(chat.turns) == 2 and chat.turns[1].answers["steered"].prompt.count(chat.turns[0].asked) == 1


def page_words(chat):
    return unescape(re.sub("<[^>]*>", "", chat._texts()["text/html"]))


def test_the_page_grows_while_it_is_written(chat, monkeypatch):
    monkeypatch.setattr("emolab.widgets.chat.SHOWN", 0.0)
    seen = []
    chat._turns.observe(lambda change: seen.append(change.new[-1]), "pages")
    said(chat, ASKED)
    lengths = [len(re.findall("data-at", page)) for page in seen]
    assert lengths == sorted(lengths) and len(set(lengths)) > 6
    assert lengths[-1] == sum(len(a.ids) for a in chat.turns[0].answers.values())


def test_a_click_shows_a_token_and_goes_on_from_another(chat):
    said(chat, ASKED)
    assert chat._details.layout.display == "none"
    chat._turns.picked = "0.steered.2.1"
    assert chat.wait(10) and chat._details.layout.display == ""
    answer = chat.turns[0].answers["steered"]
    assert f"<b>{answer.pieces[2].strip()}</b> (token 3)" in chat._token.value
    assert [value for _, value in chat._instead.options] == [-1, *(i for i, _, _ in answer.others[2])]
    chat._instead.value = answer.others[2][1][0]
    chat._buttons["go on from here"].click()
    assert chat.wait(30) and chat.turns[0].answers["steered"].ids[2] == answer.others[2][1][0]


def test_enter_sends_and_empties_the_field(chat):
    chat.prompt.value = ASKED
    assert not chat.turns, "leaving the field sends nothing"
    chat.prompt._handle_msg({"content": {"data": {"method": "custom", "content": {"event": "submit"}}}, "buffers": []})
    assert chat.wait(30) and chat.prompt.value == "" and chat.turns[0].asked == ASKED
    chat._buttons["send"].click()
    assert "the prompt is empty" in chat._status.value and len(chat.turns) == 1


def test_a_question_is_edited_in_its_field(chat):
    said(chat, ASKED)
    said(chat, THEN)
    chat._buttons["edit"].click()
    assert chat.prompt.value == THEN and "turn 2" in chat._status.value
    chat.prompt.value = "was it cold ?"
    chat._buttons["send"].click()
    assert chat.wait(30) and [turn.asked for turn in chat.turns] == [ASKED, "was it cold ?"]
    chat._turns.picked = "0.steered.1.1"
    assert chat.wait(10)
    chat._buttons["edit"].click()
    chat._buttons["send"].click()
    assert chat.wait(30) and [turn.asked for turn in chat.turns] == [ASKED] and chat.prompt.value == ""
    said(chat, THEN)
    assert len(chat.turns) == 2


def test_errors_stand_in_the_chat(chat):
    said(chat, ASKED)
    chat.ask("park " * 200)
    assert chat.wait(30) and 'role="alert"' in chat._status.value and "does not fit" in chat._status.value


def test_a_pad_for_valence_and_arousal(model):
    axes = random_vectors(model, ("valence", "arousal"))
    chat = Chat(model, axes, doses={"valence": 1.0}, max_new_tokens=4)
    pad = chat.dials.children[1]
    assert (pad.x, pad.y, pad.top) == (1.0, 0.0, 3.0)
    pad.x, pad.y = -2.0, 0.5
    assert chat.steering.doses == {"valence": -2.0, "arousal": 0.5}
    chat.dials.unit.value = "residual"
    assert (pad.x, pad.y, pad.top) == (0.0, 0.0, 0.5)
    assert chat.texts == {} and list(chat.transcript()) == ["turn", "asked", "arm", "text", "doses"]
    chat.close()


def test_the_layer_that_is_read(model, vectors):
    talk = Conversation(model, vectors)
    assert talk.place(None) == (1, False)
    assert talk.place(Steering(vectors, {"joy": 1.0}, layers=[2])) == (1, False)
    assert talk.place(Steering(vectors, {"joy": 1.0})) == (1, True)


def test_letters_of_several_tokens_come_whole(model, vectors, monkeypatch):
    """As with tokenizers that spell what they do not know byte by byte."""
    talk = Conversation(model, vectors)
    text = {(): "", (1,): "\ufffd", (1, 2): "é", (1, 2, 3): "é!"}
    monkeypatch.setattr(model.tokenizer, "decode", lambda ids, **_: text[tuple(ids)])
    answer = Answer("", None)
    talk._set(answer, [1, 2, 3])
    assert answer.pieces == ["", "é", "!"] and answer.text == "é!"


def test_a_judge_reads_every_arm(model, vectors):
    class Judge:
        labels, name = ("joy", "neutral"), "fixed"

        def __call__(self, texts):
            return np.tile([0.25, 0.75], (len(texts), 1))

    chat = Chat(model, vectors, setting=ATTN, doses={"joy": 2.0}, judge=Judge(), max_new_tokens=4)
    said(chat, ASKED)
    assert chat.turns[-1].judged == dict.fromkeys(("unsteered", "steered", "random"), {"joy": 0.25, "neutral": 0.75})
    assert chat.transcript()["p_joy"].to_list() == [0.25] * 3 and "judge “fixed”" in page_words(chat)
    assert isinstance(chat.transcript(), pd.DataFrame) and not [t for t in threading.enumerate() if t.name == "none"]
    chat.close()
