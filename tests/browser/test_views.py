"""The two views by themselves in a browser: what the scripts show is what the tables hold, and nothing else runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from emolab.widgets import head_view, token_view
from tests.browser.test_lab import browser  # noqa: F401  (a fixture)
from tests.tiny import random_vectors

pytestmark = [pytest.mark.browser, pytest.mark.slow]
HOSTILE = "</script><script>hacked = 1</script>' <img src=x onerror='hacked = 1'>"


@pytest.fixture
def open_page(browser, tmp_path):  # noqa: F811
    page = browser.new_page()
    said = []
    page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))

    def show(*views):
        path = tmp_path / "page.html"
        path.write_text('<meta charset="utf-8"><body>' + "".join(v.html for v in views), encoding="utf-8")
        page.goto(path.as_uri())
        return page

    yield show
    assert page.evaluate("typeof hacked") == "undefined" and not said, said
    page.close()


def test_tokens_at_every_layer_and_emotion(open_page, tiny_llama):
    vectors = random_vectors(tiny_llama, ("joy", HOSTILE))
    view = token_view(tiny_llama, f"I saw a dog {HOSTILE}\n\nand a cat.", vectors, emotion=HOSTILE)
    page = open_page(view, view)  # twice: each finds its own numbers
    root = page.locator(".emolab-tokens").nth(1)
    options = root.locator("select option").all_inner_texts()
    assert options == ["joy", " ".join(HOSTILE.split())]
    for e, emotion in enumerate(vectors.emotions):
        root.get_by_label("emotion").select_option(index=e)
        for layer in range(3):
            root.get_by_role("slider").fill(str(layer))
            own = view.table[(view.table["layer"] == layer) & (view.table["emotion"] == emotion)]
            titles = root.locator(".emolab-text > span").evaluate_all("els => els.map((x) => x.title)")
            shown = [float(t.replace("−", "-")) for t in titles]
            np.testing.assert_allclose(shown, own["cosine"], atol=0.0051)
    first = page.locator(".emolab-tokens").nth(0).locator("label output")
    assert first.inner_text() == "1", "one view moved the other"
    tokens = root.locator(".emolab-text > span")
    tokens.first.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    assert root.locator("label output").inner_text() == "1"
    n = tokens.count()
    assert tokens.nth(n - 2).evaluate("x => x === document.activeElement")
    assert tokens.evaluate_all("els => els.filter((x) => x.tabIndex === 0).length") == 1, "one stop of the Tab key"
    label = tokens.nth(n - 2).get_attribute("aria-label")
    assert label == f"cat {tokens.nth(n - 2).get_attribute('title')}"


def test_every_head(open_page):
    index = pd.MultiIndex.from_product([[1, 4], [0, 2, 5], ["joy", HOSTILE]], names=["layer", "head", "emotion"])
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(12, 2)) * 1e-3, columns=["share", "effect"], index=index).reset_index()
    table["q"] = rng.random(12) / 10
    table.loc[0, "share"] = np.nan
    view = head_view(table)
    page = open_page(view)
    for e, emotion in enumerate(["joy", HOSTILE]):
        page.get_by_label("emotion").select_option(index=e)
        for i, layer in enumerate([1, 4]):
            for j, head in enumerate([0, 2, 5]):
                cell = page.locator(".emolab-map tr").nth(2 - j).locator("td").nth(i)
                cell.click()
                own = table[(table["layer"] == layer) & (table["head"] == head)].set_index("emotion")
                assert page.locator(".emolab-head").inner_text() == f"layer {layer}, head {head}"
                rows = page.locator(".emolab-details tr").nth(1 + e).locator("td").all_inner_texts()
                shown = [np.nan if t == "–" else float(t.replace("−", "-")) for t in rows]
                exact = own.loc[emotion, ["share", "q", "effect"]].astype(float)
                np.testing.assert_allclose(shown, exact, rtol=6e-3, atol=1e-6)
                assert (cell.inner_text() == "•") == (own.loc[emotion, "q"] < 0.05)
                assert cell.get_attribute("aria-label").startswith(f"layer {layer}, head {head}: ")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".emolab-head").inner_text() == "layer 1, head 2"
