"""The page of a run: complete, self-contained, and safe whatever a model wrote."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from matplotlib.figure import Figure

from emolab import plot
from emolab.base.errors import EmolabError
from emolab.base.storage import write_json
from emolab.base.tables import noted
from emolab.studies.report import write_report

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)> & "quotes" {{ model }}'


@pytest.fixture
def run(tmp_path):
    cell = {"best_alpha": 1.5, "target_share": 0.75, "target_interval": [0.5, 0.9], "unsteered_share": 0.1}
    cell |= {"random_share": 0.125, "shuffled_share": 0.2, "adherence_ratio": 0.8, "perplexity_ratio": None, "n": 4}
    cell |= {"repetition": 0.03, "named_share": 0.25, "refusal_share": 0.5}
    summary = {"model": "a <b>model</b>", "seed": 3, "n_queries": {"extract": 4, "select": 2, "report": 3}}
    summary |= {"setting": {"site": "attn", "layers": "all", "part": "whole"}, "steering": {"joy": cell}}
    summary |= {"instruction_following": {"joy": 1.0}, "geometry": {"not_measured": "too few"}}
    turned = {"target": 0.4, "own": 0.3, "target_unsteered": 0.06, "own_unsteered": 0.7, "target_random": None, "n": 9}
    summary["evoking"] = {"joy": turned}
    summary["wording"] = {"name": "first person", "sentence": "Followed best is <b>first person</b>."}
    summary["collapse"] = {"joy": {"alpha_star": 1.75}}
    summary["claims"] = {"linear": {"verdict": "mixed", "condition": "within 1 < 2", "evidence": {}}}
    write_json(tmp_path / "summary.json", summary)
    write_json(tmp_path / "manifest.json", {"revision": HOSTILE})
    rows = [
        (f"q{q}", f"query {q} {HOSTILE}", "joy", alpha, control, f"text {q} {alpha} {control} {HOSTILE}")
        for q in range(3)
        for alpha, control in ((0.0, "none"), (1.0, "none"), (1.5, "none"), (1.5, "random"), (1.5, "shuffled"))
    ]
    table = pd.DataFrame(rows, columns=["query_id", "query", "emotion", "alpha", "control", "text"])
    table.to_parquet(tmp_path / "scores.parquet", index=False)
    told = table[table["alpha"] == 0].assign(condition="joy", emotion="neutral", text=lambda t: "told " + t["text"])
    told.drop(columns=["alpha", "control"]).to_parquet(tmp_path / "instructed_scores.parquet", index=False)
    table = pd.DataFrame({"layer": [0, 1], "norm": [1.0, 2.0]})
    fig = Figure()
    fig.subplots().plot(table.layer, table.norm)
    table = noted(table, {"model": "m"}, n="2", seed=0)
    words = {"caption": f"Norms {HOSTILE}", "alt": f"Two points {HOSTILE}"}
    plot.save_figure(fig, "norms", data=table, **words, directory=tmp_path / "figures")
    return tmp_path


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)


def test_what_a_model_wrote_is_shown_as_text_only(run):
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and page.tags.count("img") == 1, "the figure alone"
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert any(HOSTILE in words for words in page.words), "shown as it was written, not as markup or template"
    assert "a <b>model</b>" in "".join(page.words)


def test_the_page_needs_nothing_else(run):
    text = write_report(run).read_text(encoding="utf-8")
    links = [value for name, value in Page(text).attributes if name in ("src", "href")]
    assert links and all(link.startswith(("data:image/svg+xml;base64,", "#")) for link in links)
    ids = re.findall(r'id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and {link[1:] for link in links if link[0] == "#"} <= set(ids)


def test_numbers_are_those_of_the_summary(run):
    words = " ".join(" ".join(Page(write_report(run).read_text(encoding="utf-8")).words).split())
    headline = ["dose α", "target on top", "random direction", "shuffled labels", "unsteered", "instructed"]
    headline += ["adherence / unsteered", "repetition", "names the emotion", "refuses", "perplexity / instructed"]
    assert " ".join(["emotion", *headline, "collapse dose α*"]) in words
    assert "joy 1.50 0.75 (0.50 to 0.90) 0.12 0.20 0.10 1.00 0.80 0.03 0.25 0.50 – 1.75" in words
    assert "joy 0.40 0.30 0.06 0.70 – 9" in words and "Questions that evoke another emotion" in words
    assert "Followed best is <b>first person</b>." in words, "as text"
    assert "mixed" in words and "within 1 < 2" in words and "Geometry: not measured (too few)." in words
    assert "Baselines" not in words, "nothing was compared"


def test_texts_answer_one_question_drawn_by_the_seed_at_the_frozen_dose(run):
    page = write_report(run).read_text(encoding="utf-8")
    shown = re.findall(r"(told )?text (\d) ([\d.]+) (\w+)", page)
    number = shown[0][1]
    plain = (number, "0.0", "none")
    steered = [("", number, "1.5", control) for control in ("none", "random", "shuffled")]
    assert shown == [("", *plain), *steered, ("told ", *plain)] and f"query {number} &lt;script" in page
    assert write_report(run).read_text(encoding="utf-8") == page
    summary = json.loads((run / "summary.json").read_text())
    asked = set()
    for seed in range(20):
        write_json(run / "summary.json", summary | {"seed": seed})
        asked |= set(re.findall(r"Question:</b> query (\d)", write_report(run).read_text(encoding="utf-8")))
    assert asked == {"0", "1", "2"}


def test_what_was_not_tested_has_no_heading(run):
    assert "Claims" in write_report(run).read_text(encoding="utf-8")
    summary = json.loads((run / "summary.json").read_text())
    for claims in ({"claims": {}}, {}):
        write_json(run / "summary.json", {k: v for k, v in summary.items() if k != "claims"} | claims)
        page = write_report(run).read_text(encoding="utf-8")
        assert "Claims" not in page and "claim" not in page and "Baselines" not in page


def test_a_run_that_is_not_finished_is_refused(run):
    (run / "scores.parquet").unlink()
    with pytest.raises(EmolabError, match="scores.parquet is missing or damaged; run `emolab study"):
        write_report(run)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["seed"] == 3, "left as it was"
