"""Tokens coloured by their projection: the numbers, their HTML, and what must not get into it."""

from __future__ import annotations

import base64
import json
import re
from html import unescape

import numpy as np
import pandas as pd
import pytest
import torch

import emolab
from emolab.base.errors import EmolabError
from emolab.models.prompts import encode, render_prompts
from emolab.models.sites import site_hooks
from emolab.steering.steering import Steering, steered
from emolab.vectors.token_rule import token_pieces
from emolab.widgets import token_projections, token_view
from emolab.widgets import tokens as tokens_module
from emolab.widgets.page import page, signed, signed_shade
from tests.mini import WEIGHTS, mini_queries
from tests.tiny import random_vectors

TEXT = "The park was quiet, and I saw a dog."
HOSTILE = "</script><script>alert(1)</script>' \" & <img src=x onerror=alert(2)>"


def parts(view):
    """(data, numbers [emotion, layer, token], spans as (title, style, text)) as the script finds them."""
    data = json.loads(unescape(re.search(r"data-emolab='([^']*)'", view.html)[1]))
    numbers = np.frombuffer(base64.b64decode(data["values"]), np.int8).astype(float) * data["step"]
    body = re.search(r'class="emolab-text"[^>]*>(.*?)</div>', view.html, re.S)[1]
    spans = re.findall(r'<span title="([^"]*)" style="([^"]*)">(.*?)</span>', body, re.S)
    return data, numbers.reshape(len(data["emotions"]), len(data["layers"]), -1), spans


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("site", ["resid", "attn", "mlp"])
def test_numbers_are_those_of_run_with_cache(family, site, request):
    model = request.getfixturevalue(f"tiny_{family}")
    vectors = random_vectors(model)
    prompt = render_prompts(model, ["Tell me about the park."], "joy")[0]
    table = token_projections(model, TEXT, vectors, prompt=prompt, site=site)
    batch = encode(model, [prompt], [TEXT])
    n = int(batch.response_mask.sum())
    _, cache = model.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask)
    assert list(table.columns) == ["position", "token", "layer", "emotion", "cosine", "projection"]
    assert len(table) == n * model.n_layers * 3
    for layer, name in enumerate(site_hooks(model, site)):
        h = cache[name][0, -n:].double()
        for emotion in vectors.emotions:
            v = vectors.get(site, emotion=emotion, layer=layer).double()
            own = table[(table["layer"] == layer) & (table["emotion"] == emotion)].sort_values("position")
            near = {"rtol": 1e-9, "atol": 1e-12}
            np.testing.assert_allclose(own["projection"], h @ v / v.norm(), **near)
            np.testing.assert_allclose(own["cosine"], torch.cosine_similarity(h, v[None], dim=-1), **near)


def test_tokens_are_the_text_without_bos_and_prompt(tiny_llama):
    vectors = random_vectors(tiny_llama)
    table = token_projections(tiny_llama, TEXT, vectors, layers=[2])
    assert "".join(table.drop_duplicates("position")["token"]) == TEXT and set(table["layer"]) == {2}
    other = token_projections(tiny_llama, TEXT, vectors, prompt="how did you feel when", layers=[2])
    assert len(other) == len(table) and not np.allclose(other["cosine"], table["cosine"])


def test_hooks_are_gone_and_steering_shows(tiny_llama):
    vectors = random_vectors(tiny_llama)
    before = token_projections(tiny_llama, TEXT, vectors)
    with steered(tiny_llama, Steering(vectors, {"joy": 2.0}, positions="all", layers=[1])):
        inside = token_projections(tiny_llama, TEXT, vectors)
    pd.testing.assert_frame_equal(token_projections(tiny_llama, TEXT, vectors), before)
    moved = (inside["projection"] - before["projection"])[(before["layer"] == 1) & (before["emotion"] == "joy")]
    norm = vectors.get("resid", emotion="joy", layer=1).norm().item()
    np.testing.assert_allclose(moved, 2 * norm, rtol=1e-4)
    assert not (inside["projection"] - before["projection"])[before["layer"] == 0].any()


def test_a_vector_of_zero_has_no_direction(tiny_llama):
    vectors = 0.0 * random_vectors(tiny_llama)
    table = token_projections(tiny_llama, TEXT, vectors)
    assert not table["cosine"].any() and not table["projection"].any()
    assert "rgba" in token_view(tiny_llama, TEXT, vectors, measure="projection").html


@pytest.mark.parametrize("measure", ["cosine", "projection"])
def test_the_view_holds_all_layers_and_emotions(tiny_llama, measure):
    vectors = random_vectors(tiny_llama)
    view = token_view(tiny_llama, TEXT, vectors, emotion="joy", measure=measure)
    data, numbers, spans = parts(view)
    exact = view.table.set_index(["emotion", "layer", "position"])[measure].sort_index().to_numpy().reshape(3, 3, -1)
    assert data["emotions"] == ["anger", "joy", "sadness"] and data["layers"] == [0, 1, 2] and data["layer"] == 1
    peak = 1.0 if measure == "cosine" else np.abs(exact).max()
    np.testing.assert_allclose(numbers, exact, atol=0.0051 * peak)
    assert data["limit"] == pytest.approx(np.abs(exact).max())
    assert "".join(re.sub(r"<[^>]*>", "", "".join(s[2] for s in spans)).split()) == TEXT.replace(" ", "")
    for (title, style, _), value in zip(spans, numbers[1, 1], strict=True):
        assert float(title.replace("−", "-")) == pytest.approx(value, abs=10.0 ** -data["digits"] * 0.51)
        assert style == f"background-color:{signed_shade(value, data['limit'])}"
    assert "<b>joy</b>, layer 1" in view.html and ("Cosine" if measure == "cosine" else "unit norm") in view.html
    assert repr(view).startswith("token_view(") and len(repr(view)) < 120 and view._repr_html_() == view.html


def test_shades_have_fixed_symmetric_limits(tiny_llama):
    assert signed_shade(0.5, 1.0) == "rgba(214,60,60,0.33)" and signed_shade(-0.5, 1.0) == "rgba(40,110,220,0.33)"
    assert signed_shade(9, 1.0) == signed_shade(1, 1.0) and signed_shade(0, 1.0).endswith(",0.00)")
    for measure in ("cosine", "projection"):
        view = token_view(tiny_llama, TEXT, random_vectors(tiny_llama), measure=measure)
        assert parts(view)[0]["limit"] == view.table[measure].abs().max()
    assert (signed(-0.004, 2), signed(-1.25, 1), signed(3, 0)) == ("0.00", "−1.2", "+3")


def test_what_is_written_is_escaped(tiny_llama):
    vectors = random_vectors(tiny_llama, (HOSTILE, "it's"))
    view = token_view(tiny_llama, HOSTILE + "\n\npark", vectors)
    data, _, spans = parts(view)
    assert data["emotions"] == [HOSTILE, "it's"]
    assert "<script>alert" not in view.html and "<img" not in view.html
    assert view.html.count("<script") == 1 and view.html.count("</script>") == 1
    shown = unescape("".join(s[2] for s in spans)).replace("⏎", "")
    assert "".join(shown.split()) == "".join((HOSTILE + "park").split())
    assert "&#39;" in page("tokens", "", {"a": "'"}) and "<b>" not in page("tokens", "", {"a": "<b>"})


def test_the_script_builds_no_html():
    for kind in ("tokens", "heads"):
        script = page(kind, "", {}).split("<script>")[1]
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
        assert "</" not in script.removesuffix("</script>")


def test_a_view_stays_small(tiny_llama, monkeypatch):
    labels = ["anger", "disgust", "fear", "joy", "sadness"]
    index = pd.MultiIndex.from_product([range(300), range(80), labels], names=["position", "layer", "emotion"])
    table = pd.DataFrame({"cosine": np.linspace(-1, 1, len(index)), "projection": 0.0}, index=index).reset_index()
    table.insert(1, "token", " <word>")
    monkeypatch.setattr(tokens_module, "token_projections", lambda *args, **options: table)
    view = token_view(tiny_llama, TEXT, random_vectors(tiny_llama, labels))
    data, numbers, _ = parts(view)
    assert len(view.html.encode()) < 60_000 and view.table is table
    assert data["layers"] == list(range(0, 80, 6)) and "of 80 layers, 14 are here" in view.html
    own = table[(table["layer"] == 12) & (table["emotion"] == "joy")]
    np.testing.assert_allclose(numbers[3, 2], own["cosine"], atol=0.0051)


def test_a_text_that_does_not_fit_is_refused(tiny_llama):
    with pytest.raises(EmolabError, match="does not fit"):
        token_view(tiny_llama, "park " * 200, random_vectors(tiny_llama))


def test_too_many_tokens(tiny_llama, monkeypatch):
    monkeypatch.setattr(tokens_module, "MAX_TOKENS", 5)
    with pytest.raises(EmolabError, match="at most 5"):
        token_view(tiny_llama, TEXT, random_vectors(tiny_llama))


def test_a_slow_tokenizer_tells_no_offsets(tiny_llama, monkeypatch):
    plain = type(tiny_llama.tokenizer).__call__

    def call(self, *args, return_offsets_mapping=False, **options):
        if return_offsets_mapping:
            raise NotImplementedError
        return plain(self, *args, **options)

    monkeypatch.setattr(type(tiny_llama.tokenizer), "__call__", call)
    table = token_projections(tiny_llama, "park walk", random_vectors(tiny_llama), layers=[0])
    assert list(table.drop_duplicates("position")["token"]) == [" park", " walk"]


def test_tokens_that_share_a_character(tiny_llama, monkeypatch):
    offsets = {"offset_mapping": [[(0, 1), (0, 1), (0, 1), (1, 3)]]}
    monkeypatch.setattr(tiny_llama, "tokenizer", lambda *args, **options: offsets)
    assert token_pieces(tiny_llama, ["😀 a"]) == [["😀", "", "", " a"]]


@pytest.mark.slow
def test_the_bundled_model():
    model = emolab.load_model(WEIGHTS)
    queries = mini_queries("train").groupby("situation").head(1).head(8)
    responses = emolab.collect_responses(model, queries)
    vectors = emolab.extract_vectors(model, responses, sites=("attn",))
    means = {}
    for condition in ("neutral", "joy"):
        row = responses[responses["condition"] == condition].iloc[0]
        table = token_projections(model, row["text"], vectors, prompt=row["prompt"], site="attn")
        means[condition] = table[table["emotion"] == "joy"].groupby("layer")["cosine"].mean()
    assert (means["joy"] > means["neutral"] + 0.1).all()
    assert len(token_view(model, row["text"], vectors, site="attn").html.encode()) < 30_000
