"""The study: what is chosen on which queries, what it writes, and that it goes on where it was."""

from __future__ import annotations

import json
from dataclasses import replace
from html import escape
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import emolab
from emolab.answers import jobs, responses
from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS
from emolab.experiments import breaking, selection, sweeps
from emolab.experiments.selection import Round, Search, choose, select
from emolab.geometry import projections
from emolab.judges import judges
from emolab.plot import save
from emolab.plot.save import read_manifest
from emolab.studies import figures as drawing
from emolab.studies import pace, pipeline
from emolab.studies.figures import read_summary, run_figures
from emolab.studies.numbers import turned
from emolab.studies.pipeline import study
from emolab.studies.plan import FULL, QUICK, Plan
from tests import oracle, tiny
from tests.mini import WEIGHTS, mini_lexicon, mini_queries

DOSES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)


def tried(shares, adherence=None, perplexity=None, emotion="joy", n=20, part="whole") -> pd.DataFrame:
    """Scored texts: the share of hits, the adherence and the perplexity at every dose; unsteered ones before them."""
    rows = []
    adherence = adherence or [0.5] * len(shares)
    perplexity = perplexity or [8.0] * len(shares)
    cells = zip((0.0, *DOSES), (0.0, *shares), (0.5, *adherence), (8.0, *perplexity), strict=True)
    for alpha, share, fits, confusion in cells:
        for q in range(n):
            rows.append((f"q{q}", emotion, alpha, float(q < round(share * n)), fits, confusion))
    columns = ["query_id", "emotion", "alpha", f"p_{emotion}", "adherence", "perplexity_instructed"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(site="attn", layers="all", part=part, control="none", adherence_shuffled=0.0)


def instructed(value=8.0, emotions=EMOTIONS) -> pd.DataFrame:
    return pd.DataFrame({"condition": list(emotions) * 3, "perplexity_instructed": [value] * 3 * len(emotions)})


def test_the_middle_of_the_plateau_is_taken():
    found = choose(tried([0.0, 0.5, 1.0, 1.0, 1.0, 0.6]), instructed())
    assert list(found.columns) == [
        "site",
        "layers",
        "part",
        "emotion",
        "alpha",
        "score",
        "target",
        "adherence",
        "fluency",
    ]
    assert found["alpha"].item() == 1.5 and found["score"].item() == pytest.approx(1.0)
    assert choose(tried([0.0, 0.4, 0.9, 0.5, 0.2, 0.0]), instructed())["alpha"].item() == 1.0, (
        "a peak is its own middle"
    )


def test_broken_text_is_not_chosen_however_emotional():
    found = choose(tried([0.2, 0.5, 0.8, 1.0, 1.0, 1.0], perplexity=[8, 8, 9, 80, 800, 8e4]), instructed())
    assert found["alpha"].item() == 1.0
    assert found[["target", "adherence", "fluency"]].iloc[0].tolist() == pytest.approx([0.8, 1.0, 8 / 9])
    assert found["score"].item() == pytest.approx(0.8 * 3 / (1 + 1 + 9 / 8)), "of each text, then the mean"


def test_text_beside_the_question_is_not_chosen_however_emotional():
    found = choose(tried([0.2, 0.6, 0.9, 1.0, 1.0, 1.0], adherence=[0.5, 0.5, 0.45, 0.1, 0.02, -0.1]), instructed())
    assert found["alpha"].item() == 1.0
    better = tried([0.2, 0.6, 0.9, 0.9, 0.9, 0.2], adherence=[0.9] * 6)  # more than unsteered text counts as much as it
    assert choose(better, instructed())["adherence"].item() == 1.0


def test_fluency_counts_against_answers_of_the_same_emotion():
    reference = pd.concat([instructed(4.0, ["joy"]), instructed(100.0, ["fear"])])
    both = pd.concat([tried([1.0] * 6, perplexity=[8.0] * 6, emotion=e) for e in ("joy", "fear")])
    assert choose(both, reference).set_index("emotion")["fluency"].to_dict() == {"joy": 0.5, "fear": 1.0}


def test_each_setting_and_emotion_has_its_own_dose():
    cells = [
        tried([0, 1.0, 0, 0, 0, 0]),
        tried([0, 0, 0, 1.0, 0, 0], emotion="fear"),
        tried([0, 0, 0, 0, 1.0, 0], part="specific"),
    ]
    found = choose(pd.concat(cells), instructed()).set_index(["part", "emotion"])["alpha"].to_dict()
    assert found == {("whole", "joy"): 0.5, ("whole", "fear"): 1.5, ("specific", "joy"): 2.0}


def test_texts_that_are_empty_are_not_fluent():
    nothing = float("nan")
    found = choose(tried([0.5, 0.5, 0.5, 1.0, 1.0, 1.0], perplexity=[8, 8, 8, *[nothing] * 3]), instructed())
    assert found["alpha"].item() == 0.5 and found["score"].item() > 0, "0.25, 0.5 and 1 are equal, the rest is empty"
    lost = choose(tried([0.0] * 6, perplexity=[nothing] * 6), instructed(nothing))
    assert lost["score"].item() == 0 and lost.notna().all(axis=None)
    flat = choose(tried([1.0] * 6, adherence=[nothing] * 6), instructed())
    assert flat["score"].item() == 0 and flat["adherence"].item() == 0


def test_no_situation_serves_two_purposes():
    queries = oracle.queries(n_train=20, n_heldout=10)
    extract, select, report = selection.split_queries(queries, (8, 4, 6))
    assert [len(t) for t in (extract, select, report)] == [8, 4, 6]
    assert set(extract["split"]) | set(select["split"]) == {"train"} and set(report["split"]) == {"heldout"}
    assert not set(extract["situation"]) & set(select["situation"])
    assert not extract["query_id"].isin(select["query_id"]).any()
    assert extract["situation"].nunique() == 8 and report["situation"].nunique() == 5, "spread before it repeats"
    for bundled in (mini_queries(), emolab.load_queries()):
        extract, select, report = selection.split_queries(bundled, (40, 20, 26))
        assert len(extract) == 40 and len(report) == 26 and not set(extract["situation"]) & set(select["situation"])
        assert not set(report["situation"]) & (set(extract["situation"]) | set(select["situation"]))


def test_queries_without_situation_are_each_their_own():
    queries = oracle.queries(n_train=6, n_heldout=2).assign(situation="")
    extract, select, report = selection.split_queries(queries, (4, 5, 5))
    assert [len(t) for t in (extract, select, report)] == [4, 2, 2]


@pytest.mark.parametrize(
    ("train", "heldout", "sizes"), [(8, 0, (4, 2, 2)), (0, 8, (4, 2, 2)), (4, 4, (4, 2, 2)), (4, 4, (9, 2, 2))]
)
def test_too_few_queries_are_one_clear_error(train, heldout, sizes):
    with pytest.raises(EmolabError, match=r"too few for .*use a larger set or smaller n_queries"):
        selection.split_queries(oracle.queries(train, heldout), sizes)


# The whole of it, on a model of random weights and with a sentence encoder of no weight.

SIZES = (4, 2, 3)
DOSED = (0.5, 1.0, 2.0, 4.0)
SEARCH = Search(windows=("all", "late"), rounds=(Round(1, (1.0,), 2), Round(2, (0.5, 2.0), 1)), doses=DOSED)
PLAN = Plan(SIZES, max_new_tokens=20, search=SEARCH, methods=("instruction", "emotion vector", "random"))
SHORT = replace(PLAN, n_claims=0, methods=())


class Counted:
    """Every way to generate that the study has, counted; failing after `fail_after` calls."""

    def __init__(self, patch, fail_after=None):
        self.texts, self.calls = 0, 0
        generate = emolab.generate

        def counted(model, prompts, **options):
            if self.calls == fail_after:
                raise RuntimeError("power cut")
            self.calls, self.texts = self.calls + 1, self.texts + len(prompts)
            return generate(model, prompts, **options)

        patch.setattr(jobs, "generate", counted)
        patch.setattr("emolab.comparisons.steered_runs.generate", counted)
        patch.setattr("emolab.comparisons.methods.generate", counted)
        patch.setattr("emolab.answers.generation.generate", counted)  # which choose_wording looks up when called


def run(model, out, **options):
    queries = oracle.queries(n_train=12, n_heldout=4)
    return study(model, out=out, queries=queries, **{"plan": PLAN} | options)


def lasting(summary: dict) -> dict:
    """What a second run must give again: all but times, measured and expected."""
    timed = ("seconds", "speed")
    rows = {m: {k: v for k, v in row.items() if k not in timed} for m, row in summary["baselines"].items()}
    return {k: v for k, v in summary.items() if k not in ("timings", "expected")} | {"baselines": rows}


@pytest.fixture(scope="module")
def light():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "embed", oracle.embed)
        patch.setattr(save, "_render", oracle.drawn_once)
        patch.setattr(projections, "project", oracle.flat_umap)
        yield patch


@pytest.fixture(scope="module")
def talker():
    return emolab.load_model(oracle.talker())


@pytest.fixture(scope="module")
def studied(talker, light, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        counted = Counted(patch)
        summary = run(talker, out)
    assert counted.texts
    return summary, out


@pytest.mark.slow
def test_summary_holds_what_it_promises(studied, talker):
    summary, out = studied
    stored = read_summary(out)
    assert json.loads((out / "summary.json").read_text()) == stored and lasting(stored) == lasting(summary)
    json.dumps(summary, allow_nan=False)
    assert summary["model"] == talker.name and summary["fingerprint"] == talker.fingerprint
    assert tuple(summary["instruction_following"]) == EMOTIONS == tuple(summary["steering"])
    assert all(0 <= share <= 1 for share in summary["instruction_following"].values())
    for cell in summary["steering"].values():
        assert {"best_alpha", "target_share", "random_share", "adherence_ratio", "perplexity_ratio"} <= set(cell)
        assert cell["best_alpha"] in DOSED and cell["n"] == 3
        assert all(0 <= cell[f"{what}_share"] <= 1 for what in ("named", "refusal")) and 0 <= cell["repetition"] <= 1
        low, high = cell["target_interval"]
        assert 0 <= low <= cell["target_share"] <= high <= 1
        assert all(0 <= cell[f"{control}_share"] <= 1 for control in ("unsteered", "random", "shuffled"))
    assert set(summary["setting"]) == {"site", "layers", "part", "unit"} and summary["setting"]["unit"] == "breaking"
    assert set(summary["wording"]) == {"name", "following", "not_followed", "sentence"}
    assert tuple(summary["wording"]["following"]) == EMOTIONS
    stages = ["wording", "responses", "vectors", "selection", "sweep", "scores", "claims", "baselines", "analysis"]
    stages.append("figures")
    assert list(summary["timings"]) == ["load", "rehearsal", "pace", *stages] and min(summary["timings"].values()) >= 0
    assert list(summary["expected"]) == stages and min(summary["expected"].values()) >= 0
    assert set(summary["claims"]) == {"monotone", "preservation", "linear", "additive"}
    for claim in summary["claims"].values():
        assert set(claim) == {"verdict", "condition", "evidence"} and claim["condition"].strip()
        assert claim["verdict"] in ("supported", "not supported", "mixed")
    assert {"instruction", "emotion vector", "random"} <= set(summary["baselines"])
    assert set(summary["dose_response"]) == set(EMOTIONS)
    for cells in summary["dose_response"].values():
        assert set(cells) == {f"{a:g}" for a in (0.0, *DOSED)}
    assert summary["n_queries"] == {"extract": 4, "select": 2, "report": 3}
    assert set(summary["blind"]) == {"neutral_share", "instruction_following", "target_share"}
    assert "evoking" not in summary, "a user's questions are one set"


@pytest.mark.slow
def test_files_of_a_run(studied, talker):
    _, out = studied
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    for name in (
        "manifest.json", "responses.parquet", "vectors.safetensors", "response_means.safetensors", "sweep.parquet",
        "scores.parquet", "summary.json", "report.html", "claims/linear.parquet", "baselines.parquet",
        "selection/choice.json", "figures/dose_response.png",
        "figures/dose_response.svg", "figures/instruction_following.png", "figures/norms.png",
        "figures/cosine_by_layer.png", "figures/manifest.json", "figures/data/dose_response.csv",
    ):  # fmt: skip
        assert name in files, name
    assert not [name for name in files if name.endswith(".tmp")]
    for name in ("manifest.json", "selection/choice.json", "figures/manifest.json"):
        json.loads((out / name).read_text(), parse_constant=pytest.fail)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["fingerprint"] == talker.fingerprint and manifest["seed"] == 0
    assert {"tl_version", "emolab_version", "dtype", "source", "compat"} <= set(manifest)
    assert {"token_rule", "template_hash", "corpus_hash"} <= set(manifest["vectors"])


@pytest.mark.slow
def test_each_query_serves_one_purpose(studied):
    summary, out = studied
    queries = oracle.queries(n_train=12, n_heldout=4)
    extract, select, report = selection.split_queries(queries, SIZES)
    reported = pd.read_parquet(out / "scores.parquet")
    assert set(reported["query_id"]) == set(report["query_id"])
    assert set(pd.read_parquet(out / "instructed_scores.parquet")["query_id"]) == set(report["query_id"])
    for step, n in {"unsteered": 2, "round-1/0": 1, "round-2/0": 2, "doses/0": 2}.items():
        asked = pd.read_parquet(out / f"selection/{step}/sweep.parquet")["query_id"]
        assert set(asked) == set(select["query_id"][:n])
    means = emolab.ResponseMeans.load(out / "response_means.safetensors")
    assert set(means.index["query_id"]) <= set(extract["query_id"])
    assert emolab.EmotionVectors.load(out / "vectors.safetensors").sites == ("resid", "attn", "mlp", "head")
    assert set(reported["control"]) == {"none", "random", "shuffled"}
    setting = summary["setting"]
    layers = setting["layers"] if setting["layers"] == "all" else ",".join(map(str, setting["layers"]))
    places = set(zip(reported["site"], reported["layers"], reported["part"], reported["unit"], strict=True))
    assert places == {(setting["site"], layers, setting["part"], "breaking")}


@pytest.mark.slow
def test_figures_of_the_summary_are_those_of_the_scores(studied):
    """Target, random and ratios, computed again from the tables on disk."""
    summary, out = studied
    scored, answers = (pd.read_parquet(out / f"{name}.parquet") for name in ("scores", "instructed_scores"))
    for emotion, cell in summary["steering"].items():
        rows = scored[(scored["emotion"] == emotion) & (scored["alpha"] == cell["best_alpha"])]
        for control, key in (("none", "target_share"), ("random", "random_share"), ("shuffled", "shuffled_share")):
            hits = rows.loc[rows["control"] == control, "top"] == emotion
            assert cell[key] == pytest.approx(hits.mean(), abs=1e-4)
        own = rows[rows["control"] == "none"]
        plain = scored[(scored["emotion"] == emotion) & (scored["alpha"] == 0)]
        told = answers.loc[answers["condition"] == emotion]
        expected = {
            "adherence_ratio": own["adherence"].mean() / plain["adherence"].mean(),
            "perplexity_ratio": own["perplexity_instructed"].median() / told["perplexity_instructed"].median(),
        }
        for key, value in expected.items():
            assert cell[key] == (pytest.approx(value, abs=1e-3) if np.isfinite(value) else None), key
        assert summary["instruction_following"][emotion] == pytest.approx((told["top"] == emotion).mean(), abs=1e-4)


@pytest.mark.slow
def test_the_same_call_again_generates_nothing(studied, talker, light, monkeypatch):
    summary, out = studied
    before = {p: p.read_bytes() for p in (out / "vectors.safetensors", out / "sweep.parquet")}
    monkeypatch.setattr(pipeline, "run_figures", lambda out: [])
    monkeypatch.setattr(pipeline, "write_report", lambda out: None)
    with pytest.MonkeyPatch.context() as patch:
        counted = Counted(patch)
        again = run(talker, out)
    assert counted.texts == 0
    assert lasting(again) == lasting(summary)
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.slow
def test_a_broken_study_goes_on_where_it_was(studied, talker, light, tmp_path, monkeypatch):
    summary, _ = studied
    monkeypatch.setattr(pipeline, "run_figures", lambda out: [])
    monkeypatch.setattr(pipeline, "write_report", lambda out: None)
    steps = [f"selection/{step}" for step in ("unsteered", "round-1/0", "round-1/1", "round-1/2", "round-1/3")]
    for finished in ("wording.json", "responses.parquet", *steps):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
            Counted(patch, fail_after=1)  # one step further each time
            run(talker, tmp_path, plan=SHORT)
        assert (tmp_path / finished).exists() and not (tmp_path / "summary.json").exists()
    # What comes after the scores is killed in tests/test_survival.py, too.
    again, found = (lasting(x | {"baselines": {}}) for x in (run(talker, tmp_path, plan=SHORT), summary))
    assert {**again, "claims": found["claims"]} == found


@pytest.mark.slow
def test_another_study_in_the_same_folder_is_refused(studied, tiny_gpt2, light):
    _, out = studied
    before = [(out / f"{name}.json").read_bytes() for name in ("summary", "wording")]
    with pytest.raises(EmolabError, match="wording.json was made with other settings .fingerprint"):
        run(tiny_gpt2, out)
    with pytest.raises(EmolabError, match="responses.parquet was made with other settings"):
        run(tiny_gpt2, out, plan=replace(PLAN, wordings=False))
    assert [(out / f"{name}.json").read_bytes() for name in ("summary", "wording")] == before


@pytest.mark.slow
def test_a_model_that_writes_nothing_gives_null_not_nan(talker, light, tmp_path, monkeypatch):
    """It answers instructions, and steered or plain it falls silent."""
    monkeypatch.setattr(sweeps, "write_texts", lambda model, prompts, steerings, **_: [""] * len(prompts))
    monkeypatch.setattr(pipeline, "analyse", lambda *_, **__: {})  # of the answers to instructions
    monkeypatch.setattr(drawing, "_vector_figures", lambda *_: {})
    summary = run(talker, tmp_path, plan=replace(SHORT, quick=True, wordings=False))
    assert {cell["perplexity_ratio"] for cell in summary["steering"].values()} == {None}
    assert json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail) == summary


@pytest.mark.slow
def test_the_wording_can_be_given_by_its_name(talker, light, tmp_path, monkeypatch):
    asked = []

    def collect(*_, writing, **__):
        asked.append(writing.templates)
        raise RuntimeError("enough")

    monkeypatch.setattr(pipeline, "collect_responses", collect)
    with pytest.raises(RuntimeError, match="enough"):
        run(talker, tmp_path, plan=replace(SHORT, wordings="first person"))
    assert asked == [emolab.experiments.templates_of("first person", EMOTIONS)]
    assert not (tmp_path / "wording.json").exists()
    with pytest.raises(EmolabError, match="unknown wording 'politely'"):
        run(talker, tmp_path, plan=replace(SHORT, wordings="politely"))
    sizes = dict.fromkeys(("extract", "choose", "report", "evoking"), 1)
    assert "wording" not in pace.count_texts(talker, replace(SHORT, wordings="first person"), sizes, 1)


def test_a_study_of_one_emotion_ends_without_what_needs_two(talker, light, tmp_path):
    summary = run(talker, tmp_path, emotions=["joy"], plan=replace(SHORT, quick=True, wordings=False))
    drawn = set(read_manifest(tmp_path / "figures"))
    assert set(summary["steering"]) == {"joy"} and (tmp_path / "report.html").exists()
    assert {"norms", "dose_response"} <= drawn and not drawn & {"cosine_by_layer", "cosine_grid", "layer_map"}


@pytest.mark.filterwarnings("ignore:no font among .* has the letters")
@pytest.mark.slow
def test_a_study_of_labels_of_any_form_names_them_everywhere(talker, light, tmp_path):
    labels = ["_joy", "-con + 0.5 $x$ · two\nlines", "a/b\\c <b>&", "喜び, as one might say it in a questionnaire"]
    summary = run(talker, tmp_path, emotions=labels, plan=replace(SHORT, quick=True, wordings=False))
    kept = read_summary(tmp_path)
    assert list(summary["steering"]) == list(kept["steering"]) and {*kept["steering"]} == {*labels}
    assert emolab.EmotionVectors.load(tmp_path / "vectors.safetensors").emotions == tuple(labels)
    scored = pd.read_parquet(tmp_path / "scores.parquet")
    assert {*scored["emotion"]} == {*labels} and {f"p_{label}" for label in labels} <= {*scored}
    page = " ".join((tmp_path / "report.html").read_text(encoding="utf-8").split())
    assert all(escape(" ".join(label.split())) in page for label in labels) and "<b>&" not in page
    assert {*pd.read_csv(tmp_path / "figures/data/norms.csv")["emotion"]} == {*labels}


@pytest.mark.slow
def test_figures_are_drawn_again_from_the_files_alone(studied, tmp_path, monkeypatch):
    _, out = studied
    drawn = ["norms", "cosine_by_layer", "cosine_grid", "layer_map", "response_map", "probe", "reliability"]
    drawn += ["confounds", "head_map", "head_effects", "ablation"]
    again = ["instruction_following", "dose_response", "effect_forest", "judge_agreement"]
    drawn += [*again, *(f"claim_{name}" for name in ("monotone", "preservation", "linear", "additive")), "tradeoff"]
    assert sorted(read_manifest(out / "figures")) == sorted(drawn)
    assert all((out / f"figures/{name}.png").stat().st_size > 1000 for name in drawn)
    for group in ("_vector_figures", "_geometry_figures", "_head_figures", "_comparison_figures"):
        monkeypatch.setattr(drawing, group, lambda *_: {})
    data = out / "figures/data/dose_response.csv"
    before = data.read_bytes()
    data.unlink()
    assert [path.stem for path in run_figures(out)] == again and data.read_bytes() == before
    with pytest.raises(EmolabError, match="summary.json is missing or damaged; run `emolab study --out"):
        run_figures(tmp_path)


@pytest.mark.slow
def test_the_perplexity_of_the_figure_is_that_of_the_summary(studied):
    """Given the instruction on both sides: at the frozen dose the curve shows the ratio that the summary names."""
    summary, out = studied
    data = pd.read_csv(out / "figures/data/dose_response.csv")
    compared = 0
    for emotion, cell in summary["steering"].items():
        at = (data["emotion"] == emotion) & (data["alpha"] == cell["best_alpha"]) & (data["control"] == "none")
        value = data.loc[at & (data["measure"] == "perplexity_ratio"), "value"]
        if len(value) and cell["perplexity_ratio"] is not None:
            assert value.item() == pytest.approx(cell["perplexity_ratio"], rel=1e-3)
            compared += 1
    assert compared


# What is known beforehand: settings, texts, seconds.


def test_settings_in_the_order_of_preference():
    """All layers first, then windows ever smaller; attention before the residual stream, whole before specific."""
    thirds, layers = [[0, 1, 2], [3, 4, 5], [6, 7, 8]], [[1], [3], [4], [6], [8]]
    windows = ["all", [4, 5, 6, 7, 8], *thirds, *layers]
    found = Search().settings(9, ("resid", "attn", "head"))
    assert [s for s in found if s.site == "attn"] == [
        emolab.Setting("attn", window, part, unit="breaking") for window in windows for part in ("whole", "specific")
    ]
    assert len(found) == 2 * len(windows) * 2, "heads are not searched"
    order = [("all", s) for s in ("attn", "attn", "resid", "resid")]
    assert [(s.layers, s.site) for s in found[:4]] == order
    assert [s.site for s in found[8:20]] == ["attn"] * 6 + ["resid"] * 6, "the thirds of one site together"
    assert selection.QUICK.settings(30, ("attn", "resid")) == [
        emolab.Setting(site=site, layers=layers, part=part, unit="breaking")
        for layers in ("all", list(range(15, 30)))
        for site in ("attn", "resid")
        for part in ("whole", "specific")
    ]
    few = Search().settings(2, ("resid",), n_emotions=1)
    assert few == [emolab.Setting(layers=x, unit="breaking") for x in ("all", [1], [0])], "equal ones once"


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"windows": ("half",)}, "unknown window 'half'; expected some of all, late, thirds, single"),
        ({"parts": ("shared",)}, "unknown part 'shared'; expected some of whole, specific"),
        ({"windows": ()}, "there is no window"),
        ({"doses": (0.0, 1.0)}, "expected positive numbers, in breaking alphas"),
        ({"doses": (1.0, float("nan"))}, "one of doses is nan"),
        ({"rounds": (Round(3, (), 1),)}, "at least one number"),
    ],
)
def test_a_search_that_cannot_be_is_refused_at_once(fields, match):
    with pytest.raises(EmolabError, match=match):
        Search(**fields)


def written(talker, tmp_path, queries, vectors, search, **options):
    """What `select` gives, the number of texts that it wrote, and how often it looked for a breaking alpha."""
    answers = responses.collect_responses(talker, queries, emotions=vectors.emotions, max_new_tokens=20)
    looked = []
    solve = breaking._solve
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(breaking, "_solve", lambda *a: looked.append(a[1].breaking_key) or solve(*a))
        counted = Counted(patch, **options)
        judge = judges.default_judge(vectors.emotions)
        found = select(talker, vectors, queries, answers, judge=judge, out=tmp_path, search=search)
    return found, counted.texts, looked


@pytest.mark.parametrize(
    ("rounds", "doses"),
    [
        ((Round(1, (1.0,), 3), Round(2, (0.5, 1.0, 2.0), 2), Round(9, (1.0,), 5)), (0.5, 1.0)),
        ((Round(2, (1.0, 1.0), 1),), (0.5, 1.0, 0.5)),
        ((), (1.0,)),
    ],
)
@pytest.mark.slow
def test_a_search_writes_as_many_texts_as_it_says(talker, light, tmp_path, rounds, doses):
    vectors = tiny.random_vectors(talker, emotions=("fear", "joy"), scale=0.5)
    queries, search = oracle.queries(3, 0), Search(windows=("all", "single"), rounds=rounds, doses=doses)
    _, n, looked = written(talker, tmp_path, queries, vectors, search)
    assert n == search.n_texts(talker.n_layers, vectors.sites, 2, len(queries))
    settings = search.settings(talker.n_layers, vectors.sites)
    steerings = emolab.at(vectors, [replace(setting, unit="vector") for setting in settings], ["joy"])
    assert looked == [steering.breaking_key for steering in steerings], "each once, in order"


@pytest.mark.slow
def test_a_search_goes_on_without_looking_again_where_text_breaks(talker, light, tmp_path):
    vectors = tiny.random_vectors(talker, emotions=("fear", "joy"), scale=0.5)
    given = (tmp_path, oracle.queries(3, 0), vectors, SEARCH)
    with pytest.raises(RuntimeError, match="power cut"):
        written(talker, *given, fail_after=3)
    kept = {path: path.read_bytes() for path in sorted((tmp_path / "breaking").glob("*.parquet"))}
    assert kept
    found, n, looked = written(talker, *given)
    assert not looked and 0 < n < SEARCH.n_texts(talker.n_layers, vectors.sites, 2, 3)
    assert {path: path.read_bytes() for path in sorted((tmp_path / "breaking").glob("*.parquet"))} == kept
    setting, best, marked = found
    chosen = json.loads((tmp_path / "choice.json").read_text())["setting"]
    assert chosen == selection.setting_row(setting) and set(best) == {"fear", "joy"}
    tables = [pd.read_parquet(path) for path in kept]
    alphas = {
        table.attrs["emolab"]["setting"]: dict(zip(table["emotion"], table["alpha"], strict=True)) for table in tables
    }
    assert marked.meta["breaking"] == alphas
    again, n, looked = written(talker, *given)
    assert (n, looked) == (0, []) and again[:2] == found[:2] and again[2].meta == marked.meta
    emolab.at(marked, setting, [best])  # with doses in that unit
    other = tiny.random_vectors(talker, emotions=("fear", "joy"), seed=5, scale=0.5)
    _, _, looked = written(talker, tmp_path / "other", given[1], other, SEARCH)
    assert len(looked) == len(SEARCH.settings(3, vectors.sites)), "alphas of other vectors say nothing"


@pytest.mark.slow
def test_a_setting_that_moves_nothing_is_left_out(talker, light, tmp_path):
    vectors = tiny.random_vectors(talker, emotions=("fear", "joy"), scale=0.5)
    vectors.data["attn"][:] = 0
    search = replace(SEARCH, windows=("all",), parts=("whole",))
    given = (tmp_path, oracle.queries(3, 0), vectors, search)
    setting, _, marked = written(talker, *given)[0]
    assert setting.site == "resid" and len(marked.meta["breaking"]) == 1
    assert written(talker, *given)[1:] == (0, []), "found once and for all"
    vectors.data["resid"][:] = 0
    with pytest.raises(EmolabError, match="no setting can be steered with; the vectors are zero"):
        written(talker, tmp_path / "other", *given[1:])


@pytest.mark.slow
def test_a_model_that_answers_nothing_cannot_be_steered(talker, light, tmp_path):
    vectors, queries = tiny.random_vectors(talker, emotions=("fear", "joy")), oracle.queries(3, 0)
    answers = oracle.responses(talker, queries["query"], ("fear", "joy")).assign(text=" ")
    with pytest.raises(EmolabError, match="answers none of the 3 questions"):
        select(talker, vectors, queries, answers, judge=judges.default_judge(("fear", "joy")), out=tmp_path)


@pytest.mark.slow
def test_as_many_texts_are_announced_as_are_written(studied, talker):
    """Of every stage but claims and methods."""
    summary, out = studied
    found = pace.count_texts(talker, PLAN, {"extract": 4, "choose": 2, "report": 3, "evoking": 0}, 5)

    assert found["responses"] == len(pd.read_parquet(out / "responses.parquet")) == 9 * 6
    assert found["sweep"] == len(pd.read_parquet(out / "sweep.parquet")) - 4 * 3, "unsteered ones once"
    assert found["wording"] == 66 and list(found) == ["wording", "responses", "selection", "sweep"]


@pytest.mark.parametrize(
    ("plan", "n_evoking"), [(FULL, 10), (FULL, 0), (QUICK, 0), (replace(FULL, methods=(), n_claims=0), 10)]
)
def test_seconds_are_expected_of_every_stage_that_will_be(talker, plan, n_evoking):
    sizes = {"extract": 40, "choose": 12, "report": 16, "evoking": n_evoking}
    found = pace.expect(talker, plan, sizes, 5, {"write": 200.0, "read": 700.0})
    left = {"claims": plan.n_claims, "baselines": plan.methods, "evoking": n_evoking}
    stages = [name for name in pace.STAGES if left.get(name, True) and (name != "wording" or plan.wordings)]
    assert list(found) == stages and min(found.values()) > 0
    texts = pace.count_texts(talker, plan, sizes, 5)
    assert set(texts) <= set(found)
    assert found["sweep"] == pytest.approx(texts["sweep"] * plan.max_new_tokens / 200, abs=0.05)
    slow = pace.expect(talker, plan, sizes, 5, {"write": 100.0, "read": 350.0})
    for name in set(found) - {"analysis", "figures"}:  # which hold what no pace changes
        assert slow[name] == pytest.approx(2 * found[name], abs=0.11), name


def test_the_overview_says_what_will_be_written_and_for_how_long(talker, tmp_path):
    sizes = {"extract": 4, "choose": 2, "report": 3, "evoking": 0}
    text = pace.overview(talker, tmp_path, PLAN, sizes, 5, {"sweep": 90.0, "figures": 30.0})
    counts = pace.count_texts(talker, PLAN, sizes, 5)
    assert f"results in {tmp_path}" in text and "0.0 million parameters, float32 on cpu" in text
    assert (
        f"\n{sum(counts.values()):,} texts: 66 wording, 54 responses" in text and "; claims and methods beside" in text
    )
    assert "Expected on this machine: 2 minutes" in text
    bare = pace.overview(talker, tmp_path, replace(PLAN, methods=(), n_claims=0), sizes, 5, {})
    assert "claims" not in bare


def test_the_pace_is_that_of_answers_written_and_read_undisturbed(talker, monkeypatch):
    clock = iter([0, 9, 10, 11, 20, 22, 30, 37])  # the first writing and the second reading are disturbed
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = pace.measure_pace(talker)
    assert set(found) == {"write", "read"} and found["write"] == 2 * found["read"] >= 48


# Questions that evoke another emotion.


class Echo:
    """Reads what a text ends with."""

    name, labels = "echo", ("fear", "joy", "neutral")

    def __call__(self, texts):
        return np.array([[float(text.endswith(label)) for label in self.labels] for text in texts])


@pytest.mark.slow
def test_questions_that_evoke_an_emotion_are_turned_round_or_not(talker, light, tmp_path, monkeypatch):
    """Written by hand: unsteered text shows what the question evokes, a steered one its target where dosed as told."""
    vectors = tiny.random_vectors(talker, emotions=("fear", "joy"), scale=0.5)
    queries = oracle.queries(4, 0).assign(emotion=["joy", "joy", "fear", "neutral"])
    evoked = dict(zip(queries["query"], queries["emotion"], strict=True))
    asked = []

    def written(model, prompts, steerings, **_):
        own = [next(emotion for query, emotion in evoked.items() if query in prompt) for prompt in prompts]
        asked.extend(own)
        found = []
        for i, (emotion, row) in enumerate(zip(own, steerings, strict=True)):
            turned = row is not None and row.vectors is vectors and i != 1
            found.append(f"so {next(iter(row.doses))}" if turned else f"so {emotion}")
        return found

    monkeypatch.setattr(sweeps, "write_texts", written)
    setting, best = emolab.Setting(site="attn", layers="late"), {"fear": 2.0, "joy": 1.0}
    found = turned(talker, vectors, queries, setting, best, Echo(), tmp_path, 8)
    assert found == {
        "fear": {  # two of joy, one neutral; of these the second is not moved
            "target": 0.6667, "own": 0.3333, "target_unsteered": 0.0, "own_unsteered": 1.0, "target_random": 0.0, "n": 3
        },
        "joy": {  # one of fear, one neutral: the latter is not moved
            "target": 0.5, "own": 0.5, "target_unsteered": 0.0, "own_unsteered": 1.0, "target_random": 0.0, "n": 2
        },
    }  # fmt: skip
    assert len(asked) == 4 + 2 * 3 + 2 * 2
    again = turned(talker, vectors, queries, setting, best, Echo(), tmp_path, 8)
    assert again == found and len(asked) == 14, "kept"
    joyful = queries.head(2)
    left = turned(talker, vectors, joyful, setting, best, Echo(), tmp_path / "joy", 8)
    assert set(left) == {"fear"}, "every question evokes joy"


def test_evoking_questions_are_held_out_and_evoke_what_is_studied():
    extract, choosing, report, evoking = pipeline._questions(None, ("joy", "fear"), FULL).values()
    assert [len(t) for t in (extract, choosing, report)] == list(FULL.n_queries)
    assert len(evoking) == FULL.n_evoking and set(evoking["split"]) == {"heldout"}
    assert evoking["emotion"].value_counts().to_dict() == {"joy": 5, "fear": 5}
    assert set(choosing["emotion"]) | set(report["emotion"]) == {"neutral"}
    ids = pd.concat([extract, choosing, report, evoking])
    assert ids["query_id"].is_unique and not set(choosing["situation"]) & set(report["situation"])
    assert not len(pipeline._questions(None, ("awe",), FULL)["evoking"])


# The bundled model.


@pytest.mark.slow
def test_the_bundled_model_follows_and_can_be_steered():
    """The lexicon of its grammar reads it: no sentence encoder, a few seconds."""
    model, lexicon = emolab.load_model(WEIGHTS), mini_lexicon()
    heldout = mini_queries("heldout").groupby("situation").head(1).head(6)
    train = mini_queries("train").groupby("situation").head(1).head(10)

    def share(texts, emotions):
        top = lexicon(texts).argmax(1)
        return float(np.mean([lexicon.labels[i] == e for i, e in zip(top, emotions, strict=True)]))

    told = responses.collect_responses(model, heldout)
    for emotion, answers in told.groupby("condition"):
        assert share(answers["text"], answers["condition"]) >= 0.8, emotion

    vectors = emolab.extract_vectors(model, responses.collect_responses(model, train), sites=("resid", "attn"))
    directions = emolab.at(vectors, [emolab.Setting(), emolab.Setting(site="attn")])
    table = emolab.sweep(model, directions, heldout, alphas=(1.0,), controls=("random",))
    found = {key: share(rows["text"], rows["emotion"]) for key, rows in table.groupby(["site", "control"])}
    gain = {site: found[site, "none"] - found[site, "random"] for site in ("resid", "attn")}
    assert max(gain.values()) > 0.4 and max(found[site, "random"] for site in gain) <= 0.2, found
