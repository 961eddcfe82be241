"""The steering panel and the map of heads, without a browser."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from contextvars import ContextVar
from html import unescape

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

import emolab
from emolab.answers.generation import generate
from emolab.base.errors import EmolabError
from emolab.judges.judges import FunctionJudge
from emolab.steering.settings import Setting
from emolab.steering.steering import Steering, steered
from emolab.widgets import SteeringPanel, head_view
from emolab.widgets import chat as chat_module
from emolab.widgets.answers import turn_page
from emolab.widgets.conversation import Answer, Conversation, Turn
from emolab.widgets.work import Latest, random_control
from tests.tiny import random_vectors
from tools.notebooks import problems, tidy

ASK, HOSTILE = "Tell me about the park.", "<script>alert(1)</script><img src=x onerror=alert(2)>"
SIZE = 60_000


class Judge(FunctionJudge):
    """Always the same verdict; remembers what it was shown."""

    def __init__(self, labels=("anger", "joy", "neutral")):
        super().__init__(self.verdict, labels, "fixed")
        object.__setattr__(self, "seen", [])

    def verdict(self, texts):
        self.seen.append(list(texts))
        return np.tile(np.linspace(0, 1, len(self.labels)), (len(texts), 1))


def test_a_text_that_the_judge_cannot_read_has_no_bars():
    answers = {arm: Answer("", None, ids=[1], pieces=[text]) for arm, text in {"steered": "so", "plain": "😡"}.items()}
    page = turn_page(Turn("?", answers, {"steered": {"joy": 1.0}, "plain": {"joy": np.nan}}), 0, ["joy"])
    assert page.count("unread") == 1 and page.count("inline-block;height") == 1 and "nan" not in page


@pytest.fixture
def vectors(tiny_llama):
    return random_vectors(tiny_llama, scale=0.5)


@pytest.fixture
def panel(tiny_llama, vectors, monkeypatch):
    monkeypatch.setattr(chat_module, "DELAY", 0.05)
    panel = SteeringPanel(
        tiny_llama, vectors, doses={"joy": 2.0}, setting=Setting(site="attn"), judge=Judge(), max_new_tokens=12
    )
    yield panel
    panel.close()


def html_of(panel):
    return panel._texts()["text/html"]


def words(shown):
    """What a reader reads, without the elements around each token."""
    return unescape(re.sub("<[^>]*>", "", shown if isinstance(shown, str) else html_of(shown)))


def hooks(model):
    """Everything that hangs on a model's modules, hook points included, but for what transformers leaves to look on."""
    modules = (*model.hf.modules(), *model.bridge.modules())
    found = (hook for m in modules for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    return sum((getattr(hook, "__module__", None) or "").split(".")[0] != "transformers" for hook in found)


def slow(panel, seconds=0.03):
    """Makes each token of the panel's model last."""
    return panel._talk.model.hf.register_forward_pre_hook(lambda module, args: time.sleep(seconds))


def begun(panel, number):
    """Waits until the run after `number` others has written a few tokens."""
    for _ in range(500):
        if panel._number > number and panel._tokens > 2:
            return
        time.sleep(0.01)
    raise AssertionError("no run began")


def test_the_first_texts_are_those_of_generate(panel, tiny_llama, vectors):
    steering = Steering(vectors, {"joy": 2.0}, site="attn")
    steered_text = generate(tiny_llama, ASK, steering=steering, max_new_tokens=12)[0]
    plain = generate(tiny_llama, ASK, max_new_tokens=12)[0]
    assert panel.texts["unsteered"] == plain and panel.texts["steered"] == steered_text != plain
    assert list(panel.texts) == ["unsteered", "steered", "random"]
    assert panel.turns[-1].judged["steered"] == {"anger": 0.0, "joy": 0.5, "neutral": 1.0}
    code = unescape(re.search(r"<code[^>]*>(.*?)</code>", html_of(panel), re.S)[1])
    assert eval(code, {"emolab": emolab, "model": tiny_llama, "vectors": vectors}) == [steered_text]


def test_a_slider_changes_the_text_and_the_steering_to_go_on_with(panel, tiny_llama, vectors):
    panel.dials.sliders["joy"].value = 0.0
    panel.dials.sliders["anger"].value = -1.5
    panel.dials.layers.value = (1, 2)
    assert panel.wait(30)
    assert panel.steering.doses == {"anger": -1.5} and list(panel.steering.layers) == [1, 2]
    expected = generate(tiny_llama, ASK, steering=panel.steering, max_new_tokens=12)[0]
    assert panel.texts["steered"] == expected and expected in words(panel)
    panel.prompt.value = "How did you feel when it was dark?"
    assert panel.wait(30)
    assert panel.texts["unsteered"] == generate(tiny_llama, panel.prompt.value, max_new_tokens=12)[0]
    panel.dials.sliders["anger"].value = 0.0
    assert panel.wait(30) and panel.steering is None and list(panel.texts) == ["unsteered"]


def test_quick_changes_are_one_run(panel):
    before = len(panel._judge.seen)
    for value in np.linspace(-2, 2, 20):
        panel.dials.sliders["joy"].value = value
    assert panel.wait(30)
    assert len(panel._judge.seen) == before + 1 and panel.steering.doses == {"joy": 2.0}


def test_a_newer_change_stops_the_older_text_at_its_next_token(panel, tiny_llama):
    handle, number, seen = slow(panel), panel._number, len(panel._judge.seen)
    start = time.perf_counter()
    panel.dials.sliders["joy"].value = -2.0
    assert time.perf_counter() - start < 0.1, "the change itself waits for the model"
    begun(panel, number)
    assert panel._status.value.startswith("writing") and not panel._buttons["stop"].disabled
    old, written = dict(panel.texts), panel._tokens
    panel.dials.sliders["joy"].value = 1.0
    handle.remove()
    assert written < 12 and panel.texts == old
    assert panel.wait(30) and panel._status.value == "" and panel._buttons["stop"].disabled
    assert len(panel._judge.seen) == seen + 1, "the stopped text was judged"
    assert panel.texts["steered"] == generate(tiny_llama, ASK, steering=panel.steering, max_new_tokens=12)[0]


def test_stop(panel):
    slow(panel)
    before, number = dict(panel.texts), panel._number
    panel.dials.sliders["joy"].value = -2.0
    begun(panel, number)
    panel._buttons["stop"].click()
    assert panel._status.value.startswith("stopped") and panel._buttons["stop"].disabled
    assert panel.wait(5) and panel.texts == before and panel._status.value.startswith("stopped")


def test_what_the_judge_says_too_late_is_not_shown(panel):
    entered, gate = threading.Event(), threading.Event()

    def think(texts):
        entered.set()
        gate.wait(10)
        return np.ones((len(texts), 3))

    before, verdicts = dict(panel.texts), dict(panel.turns[-1].judged)
    object.__setattr__(panel._judge, "function", think)
    panel.dials.sliders["joy"].value = -2.0
    assert entered.wait(10)
    panel._buttons["stop"].click()
    gate.set()
    assert panel.wait(10) and panel.texts == before and panel.turns[-1].judged == verdicts
    assert panel._status.value.startswith("stopped")


def test_other_cells_go_on_unsteered_meanwhile(panel, tiny_llama, vectors):
    before, plain = hooks(tiny_llama), generate(tiny_llama, ASK, max_new_tokens=12)
    slow(panel)
    assert hooks(panel._talk.model) == before + 1, "the count of hooks counts nothing"
    number = panel._number
    panel.dials.sliders["joy"].value = -3.0
    begun(panel, number)
    assert hooks(tiny_llama) == before
    assert generate(tiny_llama, ASK, max_new_tokens=12) == plain
    with steered(tiny_llama, Steering(vectors, {"anger": 3.0})):
        assert not panel._runs.wait(0), "the panel was quicker than this test"
        begun(panel, number)
    assert panel.wait(30)
    expected = generate(tiny_llama, ASK, steering=panel.steering, max_new_tokens=12)[0]
    assert panel.texts["steered"] == expected and hooks(tiny_llama) == before


def test_a_panel_made_inside_steered_is_not_steered_by_it(tiny_llama, vectors):
    plain = generate(tiny_llama, ASK, max_new_tokens=8)[0]
    before = hooks(tiny_llama)
    with steered(tiny_llama, Steering(vectors, {"anger": 3.0})):
        panel = SteeringPanel(tiny_llama, vectors, judge=False, max_new_tokens=8)
    assert panel.texts == {"unsteered": plain} and hooks(tiny_llama) == before
    panel.close()


def test_weights_are_shared_not_copied(panel, tiny_llama):
    own, theirs = (
        {p.data_ptr() for part in (m.hf, m.bridge) for p in part.parameters()} for m in (panel._talk.model, tiny_llama)
    )
    assert own == theirs


def test_other_models(tiny_gpt2, tiny_llama):
    own = emolab.load_model(tiny_llama.bridge, tokenizer=tiny_llama.tokenizer)  # a bridge, without a plain twin
    tiny_gpt2(tiny_gpt2.tokenizer("the park", return_tensors="pt").input_ids)  # leaves a tensor with a graph behind
    for model in (tiny_gpt2, own):
        generate(model, ASK, max_new_tokens=1)  # with its first pass a bridge hangs hooks of its own on its blocks
        vectors, before = random_vectors(model, ("calm", "pride")), hooks(model)
        options = {"setting": Setting(site="mlp", layers=[1]), "doses": {"pride": 3.0}}
        panel = SteeringPanel(model, vectors, **options, judge=False, max_new_tokens=8)
        steering = Steering(vectors, {"pride": 3.0}, site="mlp", layers=[1])
        assert panel.texts["steered"] == generate(model, ASK, steering=steering, max_new_tokens=8)[0]
        assert hooks(model) == before and panel.turns[-1].judged == {}
        panel.close()


def test_errors_stand_in_the_panel_in_one_line(panel):
    before = dict(panel.texts)
    for prompt, words in (("  ", "the prompt is empty"), ("park " * 200, "does not fit")):
        panel.prompt.value = prompt
        assert panel.wait(30)
        said = panel._status.value
        assert words in said and "\n" not in said and 'role="alert"' in said
        assert panel.texts == before and panel._buttons["stop"].disabled
    panel.prompt.value = "Tell me about the sea."
    assert panel.wait(30) and panel._status.value == "" and panel.texts != before


def test_a_judge_that_fails_costs_no_text(panel):
    def fail(texts):
        raise RuntimeError("no\nnetwork <b>")

    object.__setattr__(panel._judge, "function", fail)
    panel.dials.sliders["joy"].value = 1.0
    assert panel.wait(30) and panel.turns[-1].judged == {}
    assert "no judge: RuntimeError: no network &lt;b&gt;" in html_of(panel) and panel._status.value == ""


def test_a_judge_that_needs_the_query(panel):
    calls = []

    class Asking:
        labels, name, with_queries = ("joy",), "asking", True

        def __call__(self, texts, queries):
            calls.append((texts, queries))
            return np.ones((len(texts), 1))

    panel._judge = Asking()
    panel.dials.sliders["joy"].value = 1.0
    assert panel.wait(30) and panel.turns[-1].judged["steered"] == {"joy": 1.0}
    assert calls[0][1] == [ASK] * 3


def test_layers_that_the_model_lacks_are_refused_at_once(tiny_llama, vectors):
    with pytest.raises(EmolabError, match="unknown layer 7"):
        SteeringPanel(tiny_llama, vectors, judge=False, setting=Setting(layers=[7]))


def test_ops_and_kinds_of_dose(panel, tiny_llama):
    panel.dials.op.value = "ablate"
    assert panel.wait(30) and panel.steering is None, "a dose of another op was kept"
    assert panel.dials.unit.disabled and (panel.dials.sliders["joy"].min, panel.dials.sliders["joy"].max) == (0, 1)
    panel.dials.sliders["joy"].value = 1.0
    panel.dials.sliders["anger"].value = 0.5  # one share for all that are on
    assert panel.wait(30) and panel.steering.doses == {"anger": 0.5, "joy": 0.5}
    assert panel.steering.op == "ablate" and panel._status.value == ""
    assert panel.texts["steered"] == generate(tiny_llama, ASK, steering=panel.steering, max_new_tokens=12)[0]
    panel.dials.op.value, panel.dials.unit.value = "add", "residual"
    assert panel.dials.sliders["joy"].max == 0.5 and not panel.dials.unit.disabled
    panel.dials.sliders["joy"].value = 0.25
    assert panel.wait(30) and panel.steering.unit == "residual" and "unit='residual'" in words(panel)
    panel._buttons["all to 0"].click()
    assert panel.wait(30) and panel.steering is None


@pytest.mark.parametrize("site", ["resid", "head"])
def test_the_control_is_as_long_as_what_is_added(vectors, site):
    steering = Steering(vectors, {"joy": 1.5, "anger": -0.5}, site=site, layers=[0, 2])
    control = random_control(steering)
    ours, theirs = steering.table(), control.table()
    torch.testing.assert_close(theirs.norm(dim=-1), ours.norm(dim=-1))
    assert (torch.cosine_similarity(ours, theirs)[[0, 2]].abs() < 0.7).all() and not theirs[1].any()
    ablate = random_control(Steering(vectors, {"joy": 1.0}, op="ablate"))
    assert ablate.op == "ablate" and not torch.equal(ablate.vectors.get("resid"), vectors.get("resid"))


def test_html_is_escaped_whatever_is_written(tiny_llama, monkeypatch):
    def write(self, turn, arms, each):
        for arm in arms:
            turn.answers[arm].ids, turn.answers[arm].pieces = [5], [HOSTILE]

    monkeypatch.setattr(Conversation, "write", write)
    monkeypatch.setattr(chat_module, "DELAY", 0.0)
    vectors = random_vectors(tiny_llama, (HOSTILE, "joy"))
    judge = Judge((HOSTILE, "neutral"))
    object.__setattr__(judge, "name", HOSTILE)
    panel = SteeringPanel(tiny_llama, vectors, prompt=HOSTILE, doses={HOSTILE: 1.0}, judge=judge)
    panel._say(RuntimeError(HOSTILE))
    shown = html_of(panel) + panel._status.value + panel._texts()["text/html"]
    assert "&lt;script&gt;" in shown and "<script" not in shown and "<img" not in shown
    assert not any(s.description_allow_html for s in panel.dials.sliders.values())
    panel.close()


@pytest.fixture
def shown(monkeypatch):
    """What a panel displays and updates: (data, display_id)."""
    seen = []

    class Handle:
        def __init__(self, display_id):
            self.display_id = display_id

        def update(self, data, raw):
            seen.append((data, self.display_id))

    def display(data, raw, display_id=None):
        seen.append((data, display_id))
        return Handle(display_id)

    monkeypatch.setattr(chat_module, "display", display)
    return seen


def test_a_saved_notebook_holds_the_last_texts_in_an_output_of_their_own(panel, shown):
    """JupyterLab shows of an output with a widget the widget alone, and without its kernel an error."""
    panel._ipython_display_()
    (controls, none), (texts, name) = shown
    view = "application/vnd.jupyter.widget-view+json"
    assert set(controls) == {view, "text/plain"} and controls["text/plain"] == "SteeringPanel" and none is None
    assert set(texts) == {"text/html", "text/plain"} and panel.texts["steered"] in words(texts["text/html"])
    before = panel.texts["steered"]
    panel.dials.sliders["anger"].value = 2.0
    assert panel.wait(30) and panel.texts["steered"] != before and len(shown) == 3
    assert shown[2] == (panel._texts(), name) and panel.texts["steered"] in words(shown[2][0]["text/html"])
    outputs = [nbformat.v4.new_output("display_data", data=dict(data)) for data, _ in shown[:2]]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("panel", outputs=outputs)])
    (kept,) = tidy(notebook).cells[0].outputs
    assert kept.data == texts and problems(notebook) == []


def test_what_the_panel_writes_is_styled_as_notebooks_allow(panel):
    html = panel._texts()["text/html"]
    assert len(html) < SIZE
    # JupyterLab lets nothing else through in outputs that it does not trust.
    allowed = r"text-align|vertical-align|white-space|line-height|padding|width|max-width|border-bottom|table-layout"
    allowed += r"|border-collapse|font-size|opacity|margin|display|height|background-color|outline|color|letter-spacing"
    styles = re.findall(r'style="([^"]*)"', html)
    names = {line.split(":")[0] for style in styles for line in style.split(";") if line}
    assert styles and all(re.fullmatch(allowed, name) for name in names), names


def test_no_thread_stays(panel):
    panel.dials.sliders["joy"].value = 1.0
    assert panel.wait(30)
    for thread in [t for t in threading.enumerate() if t.name == "emolab-widget"]:
        thread.join(5)
        assert not thread.is_alive()


def test_closing_stops_the_work(panel):
    slow(panel)
    number = panel._number
    panel.dials.sliders["joy"].value = -2.0
    begun(panel, number)
    panel.close()
    assert panel.wait(5)


def test_latest_does_the_last_thing_and_survives_an_error(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    done = []

    def work(request, number):
        if request == "bad":
            raise RuntimeError
        done.append(request)

    latest = Latest(work)
    for request in "abc":
        latest.submit(request, 0.02)
    assert latest.wait(5) and done == ["c"]
    latest.submit("bad", 0.02)
    assert latest.wait(5)
    latest.submit("d", 0.02)
    assert latest.wait(5) and done == ["c", "d"]
    latest.submit("e", 0.02)
    latest.cancel()
    latest.submit("f", 0)
    assert latest.wait(5) and done == ["c", "d", "f"]


def test_latest_never_does_two_things_at_once():
    running, most, gate = [], [], threading.Event()

    def work(request, number):
        running.append(request)
        most.append(len(running))
        gate.wait(5) if request == "first" else None
        running.remove(request)

    latest = Latest(work)
    latest.submit("first", 0)
    while not running:
        time.sleep(0.001)
    latest.submit("second", 0)
    assert not latest.wait(0.05) and running == ["first"]
    gate.set()
    assert latest.wait(5) and most == [1, 1]


# --- the map of heads


def table(n_layers=3, n_heads=4, emotions=("anger", "joy"), value="share", seed=0):
    index = pd.MultiIndex.from_product([range(n_layers), range(n_heads), emotions], names=["layer", "head", "emotion"])
    rng = np.random.default_rng(seed)
    data = {name: rng.normal(size=len(index)) for name in (value, "effect", "attribution", "lo", "hi")}
    return pd.DataFrame(data | {"q": rng.random(len(index)), "test": "patch"}, index=index).reset_index()


def data_of(view):
    return json.loads(unescape(re.search(r"data-emolab='([^']*)'", view.html)[1]))


def column_of(view, name):
    """Numbers as the script reads them, [emotion, layer, head]."""
    data = data_of(view)
    steps = np.frombuffer(base64.b64decode(data["numbers"][name]["steps"]), "<i2").astype(float)
    steps[steps == -32768] = np.nan
    return (steps * data["numbers"][name]["step"]).reshape(len(data["emotions"]), len(data["layers"]), -1)


def test_head_view_holds_every_number():
    effects = table()
    effects.loc[4, "share"] = np.nan
    view = head_view(effects)
    assert data_of(view)["value"] == "share" and view.table is effects
    assert list(data_of(view)["numbers"]) == ["share", "q", "attribution", "effect", "lo", "hi"]
    for name in data_of(view)["numbers"]:
        wide = effects.set_index(["emotion", "layer", "head"])[name].sort_index().to_numpy().reshape(2, 3, 4)
        np.testing.assert_allclose(column_of(view, name), wide, atol=2e-5 * np.nanmax(np.abs(wide)))
    shown = re.findall(r"<td bgcolor=(#\w{6})[^>]*>(•?)", view.html)
    assert len(shown) == 12 and {c for c, _ in shown} > {"#8a8a8a"}
    anger = effects[effects["emotion"] == "anger"]
    assert sum(dot == "•" for _, dot in shown) == (anger["q"] < 0.05).sum()
    best = anger.loc[anger["share"].abs().idxmax()]
    assert f"layer {best.layer}, head {best['head']}</div>" in view.html
    assert f"{best.share:.3g}".replace("-", "−") in view.html
    assert len(repr(view)) < 80 and view._repr_html_() == view.html


def test_head_view_colours_are_signed_and_on_one_scale():
    effects = table(3, 1, ("joy",)).assign(share=[-2.0, 0.0, 2.0])
    low, middle, high = re.findall(r"<td bgcolor=#(..)(..)(..)", head_view(effects).html)
    assert low[0] < low[2] and high[0] > high[2] and min(middle) > "f0"
    scores = effects.drop(columns=["share", "effect", "attribution"]).assign(probe=[0, 0.5, 1])
    assert data_of(head_view(scores))["palette"][0] != data_of(head_view(effects))["palette"][0]
    assert (data_of(head_view(scores))["low"], data_of(head_view(scores))["high"]) == (0, 1)


def test_head_view_refuses_what_it_cannot_show():
    for bad, words in (
        (table().drop(columns=["share", "effect", "attribution"]), "no quantity"),
        (table(40, 40, ("joy",)), "too heavy"),
    ):
        with pytest.raises(EmolabError, match=words):
            head_view(bad)


def test_head_view_escapes_and_stays_small():
    hostile = table(emotions=(HOSTILE, "it's"))
    hostile.attrs["about"] = {"model": {"name": HOSTILE}, "n": HOSTILE}
    view = head_view(hostile)
    assert "<script>alert" not in view.html and "<img" not in view.html and "</script><img" not in view.html
    assert data_of(view)["emotions"] == [HOSTILE, "it's"]
    large = head_view(table(32, 32, ("anger", "disgust", "fear", "joy", "sadness")))
    assert len(large.html.encode()) < SIZE and set(data_of(large)["numbers"]) == {"share", "q"}


def test_head_view_takes_the_measured_tables(tiny_llama):
    from emolab.heads.head_vectors import head_maps
    from emolab.models.sites import output_weights
    from emolab.vectors.activations import response_means
    from emolab.vectors.vectors import vectors_from_means

    texts = {c: [f"{c} park {i}" for i in ("dog", "cat", "sea", "sun")] for c in ("neutral", "joy", "anger")}
    means = response_means(tiny_llama, emolab.responses_from_texts(texts), sites=("head",))
    W_O = output_weights(tiny_llama)
    maps = head_maps(vectors_from_means(means, W_O=W_O), means, W_O=W_O, n_splits=2)
    view = head_view(maps, emotion="joy")
    assert data_of(view)["value"] == "contribution" and "<b>joy</b>" in view.html
    assert re.findall(r"<td bgcolor=", view.html) == ["<td bgcolor="] * 12


def test_the_thread_knows_what_the_cell_knows_that_asked():
    """ipykernel 7.0.0 sends what a widget shows to the cell named in a context variable, and fails without one."""
    cell: ContextVar[str] = ContextVar("cell")
    seen = []
    latest = Latest(lambda request, number: seen.append((request, cell.get(), threading.current_thread().name)))
    cell.set("In [3]")
    latest.submit("a", 0)
    assert latest.wait(5) and seen == [("a", "In [3]", "emolab-widget")]
