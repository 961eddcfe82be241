"""Methods do what they say behind one interface; their comparison is fair, right, and goes on where it was."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import emolab
from emolab.answers.generation import generate
from emolab.answers.logprobs import next_token_kl, p95_kl
from emolab.base.errors import EmolabError
from emolab.comparisons import compare
from emolab.comparisons import methods as making
from emolab.comparisons.compare import COLUMNS, MEASURES, compare_methods, summary_of
from emolab.comparisons.comparison import Comparison
from emolab.comparisons.lora import Training, fit_lora, merge_lora
from emolab.comparisons.methods import build_methods, few_shot_method, instruction_method, lora_method, vector_method
from emolab.experiments.headline import headline
from emolab.judges import judges as judging
from emolab.judges.judges import FunctionJudge
from emolab.models.load import load_model
from emolab.models.prompts import render_conversation, render_prompts
from emolab.steering.settings import Setting
from emolab.steering.steering import Steering
from emolab.vectors.vectors import EmotionVectors, extract_vectors
from tests import oracle
from tests.mini import WEIGHTS, mini_queries

EMOTIONS = ("joy", "calm")  # one of the five, and one that is not
WORDS = {"joy": ["happy", "glad", "bright", "sun"], "calm": ["warm", "quiet", "good", "sea"]}
ASKED = ["tell me about the park .", "how did you feel ?", "the dog and the cat ."]
EMBED = judging.embed
STEERING = ("emotion vector", "pca", "probe", "random")


def read(texts) -> np.ndarray:
    """Shares of each emotion's words, one pseudo-word neutral."""
    counts = np.array([[sum(t.split().count(w) for w in WORDS[e]) for e in EMOTIONS] + [1] for t in texts], float)
    return counts / counts.sum(1, keepdims=True)


JUDGE = FunctionJudge(read, (*EMOTIONS, "neutral"), "words")


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "embed", oracle.embed)
        patch.setattr(compare, "BOOT", 40)
        patch.setattr(compare, "FIRST", 6)
        yield


@pytest.fixture(scope="module")
def model():
    return load_model(oracle.talker())


@pytest.fixture(scope="module")
def sets():
    table = oracle.queries(n_train=12, n_heldout=4)
    return table.iloc[:5], table.iloc[5:12], table.iloc[12:]


@pytest.fixture(scope="module")
def responses(model, sets):
    return oracle.responses(model, list(sets[0]["query"]), EMOTIONS)


@pytest.fixture(scope="module")
def vectors(model, responses):
    """At resid towards the words of each emotion, at attn of no use."""
    found = extract_vectors(model, responses, sites=("resid", "attn"))
    head = model.hf.lm_head.weight.detach()
    towards = torch.stack([head[model.tokenizer.convert_tokens_to_ids(WORDS[e])].sum(0) for e in EMOTIONS])
    data = {"resid": torch.zeros_like(found.data["resid"]), "attn": found.data["attn"] * 1e-4}
    data["resid"][:, -1] = towards * 5
    return EmotionVectors(data, EMOTIONS, found.resid_norm, found.meta)


OPTIONS = {"judges": JUDGE, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def comparison(model, vectors, tmp_path_factory):
    return Comparison(model, vectors, seed=3, out=tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def table(comparison, responses, sets):
    return compare_methods(comparison, responses, *sets[1:], **OPTIONS)


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_an_instruction_is_a_prompt_in_three_wordings(model):
    method = instruction_method(model)
    for dose, word in ((0.5, "a little"), (1.0, None), (2.0, "great")):
        prompts = render_prompts(model, ASKED, "calm", intensity=word)
        expected = generate(model, prompts, raw=True, max_new_tokens=5)
        assert method.texts(ASKED, [{"calm": dose}], max_new_tokens=5) == [expected]
        texts = ["it was quiet ."] * 3
        kls = next_token_kl(model, render_prompts(model, ASKED), texts, other_prompts=prompts)
        close(method.kls(ASKED, texts, [{"calm": dose}])[0], kls)


def test_examples_are_earlier_turns_without_instruction(model, responses, tiny_gpt2):
    def prompt(model, k):
        method = few_shot_method(model, responses, max_new_tokens=6, seed=1)
        assert method.doses == (1.0, 3.0)
        return next(method.runs(["the sea ?"], [{"joy": k}])).prompts[0]

    told = responses[responses.condition == "joy"]
    three = prompt(model, 3.0)
    shown = [r for r in told.itertuples() if f"<user>{r.query}<assistant>{r.text}" in three]
    assert len(shown) == 3 and three.count("<user>") == 4 and three.endswith("<user>the sea ?<assistant>")
    assert three.startswith("<bos>") and three.count("<bos>") == 1
    assert "<system>" not in three and "answer with" not in three
    assert sum(f"<user>{r.query}<assistant>{r.text}" in prompt(model, 1.0) for r in shown) == 1
    bare = prompt(tiny_gpt2, 1.0)
    assert bare in [f"{r.query}\n{r.text}\n\nthe sea ?\n" for r in told.itertuples()]
    with pytest.raises(EmolabError, match="awe"):
        few_shot_method(model, responses, max_new_tokens=6).texts(ASKED, [{"awe": 1.0}])
    with pytest.raises(EmolabError, match="context"):
        few_shot_method(model, responses, max_new_tokens=60)


def test_few_shot_prompts_are_the_same_on_every_day(tiny_llama_dir):
    """A template that prints today's date would give other prompts tomorrow."""
    template = (
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %} {{ m.role }} : {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} assistant :{% endif %}"
    )
    model = emolab.load_model(tiny_llama_dir, device="cpu", chat_template=template)
    examples = [("how did you feel ?", "happy !")]
    told = render_conversation(model, examples, "and the dog ?")
    assert told.endswith("26 Jul 2024 user : how did you feel ? assistant : happy ! user : and the dog ? assistant :")


def test_directions_steer_and_mix(model, vectors):
    method = vector_method(model, vectors, setting=Setting(layers=[2]))
    rows = [Steering(vectors, d, layers=[2]) for d in ({"joy": 1.0, "calm": -0.5}, {"calm": 2.0})]
    plain = render_prompts(model, ASKED)
    expected = [generate(model, plain, steering=s, raw=True, max_new_tokens=5) for s in rows]
    grid = method.texts(ASKED, [{"joy": 1.0, "calm": -0.5}, {"calm": 2.0}], max_new_tokens=5)
    assert grid == expected, "setting by setting, query by query"
    texts = ["it was .", "quiet", "so very good"]
    kls = method.kls(ASKED, texts, [{"joy": 1.0, "calm": -0.5}, {"calm": 2.0}])
    for s, found in zip(rows, kls, strict=True):
        close(found, next_token_kl(model, plain, texts, steering=s))
    for wrong in (Setting(part="shared"), Setting(site="head")):
        with pytest.raises(EmolabError, match="compare methods at"):
            vector_method(model, vectors, setting=wrong)


def test_directions_are_as_long_as_the_part_in_use(model, responses):
    vectors = extract_vectors(model, responses, sites=("resid", "attn"))
    for setting in (Setting(site="attn", part="specific"), Setting()):
        found = build_methods(Comparison(model, vectors, setting), responses, STEERING)
        part = vectors.part(setting.part)
        norms = part.get(setting.site).norm(dim=-1)
        added = {}
        for method in found:
            steering = next(method.runs(["the sea ?"], [{"calm": 1.0}])).steering[0]
            added[method.name] = steering.table()
            torch.testing.assert_close(added[method.name].norm(dim=-1), norms[1])
        torch.testing.assert_close(added["emotion vector"], part.get(setting.site)[1])
        cosines = {k: torch.cosine_similarity(x, added["emotion vector"], dim=-1).min() for k, x in added.items()}
        assert cosines["random"] < 0.6 and cosines["probe"] < 0.999
        assert all(m.can_dose and m.can_mix for m in found)
    assert [m.seconds > 0 for m in found] == [True, True, True, False]
    rows = next(found[-1].runs(ASKED * 2, [{"joy": 1.0}, {"joy": 2.0}])).steering
    assert len({id(s) for s in rows}) == 6 and rows[0] is rows[3] and rows[1] is rows[4], "three of them, in turn"
    assert torch.cosine_similarity(rows[0].table(), rows[1].table(), dim=-1).abs().max() < 0.6
    torch.testing.assert_close(rows[6].table(), 2 * rows[0].table())


def test_lora_doses_do_not_add_up(model, responses):
    adapters = {e: fit_lora(model, responses, e, training=Training(steps=4, lr=0.02)) for e in EMOTIONS}
    method = lora_method(model, adapters)
    plain = render_prompts(model, ASKED)
    settings = [{"joy": 1.0}, {"calm": 1.5}, {"joy": 0.5, "calm": 0.5}, {"joy": 1.0}]
    found = method.texts(ASKED, settings, max_new_tokens=5)
    for doses, texts in zip(settings, found, strict=True):
        merged = merge_lora(model, {adapters[e]: d for e, d in doses.items()})
        assert texts == generate(merged, plain, raw=True, max_new_tokens=5)
    assert found[0] == found[3] != found[1]
    (before,) = method.kls(ASKED, ["it was quiet ."] * 3, [{"joy": 0.0}])
    assert max(x.max() for x in before) == 0, "dose 0 is the plain model"


@pytest.mark.slow
def test_the_table_holds_every_method_and_place(table, comparison):
    assert list(table.columns) == list(COLUMNS)
    assert not table.duplicated(["method", "at", "emotion", "dose", "measure"]).any()
    assert set(table["method"]) == {*making.METHODS, "unsteered"} and set(table["measure"]) == set(MEASURES)
    places = {m: set(own["at"]) for m, own in table.groupby("method")}
    whole = {"tried", "best", "equal damage"}
    assert all(places[m] == whole for m in ("instruction", "lora", *STEERING))
    assert places["few_shot"] == places["unsteered"] == {"tried", "best"}
    n = table.groupby("at")["n"].unique().map(sorted).to_dict()
    assert n == {"tried": [6, 7], "best": [4], "equal damage": [4]}
    plain = table[(table.method == "unsteered") & (table.measure == "damage")]
    assert (plain[["value", "lo", "hi"]] == 0).all(axis=None)
    shares = table[(table.measure != "damage") & table.value.notna()]
    assert shares["value"].between(0, 1).all() and not (shares["lo"] > shares["value"] + 1e-9).any()
    by = ["method", "at", "measure"]
    best = table[table["at"] == "best"]
    means = best[best.emotion != "all"].groupby(by)["value"].mean()
    pd.testing.assert_series_equal(
        best[best.emotion == "all"].set_index(by)["value"].sort_index(), means, check_names=False
    )
    pd.testing.assert_frame_equal(pd.read_parquet(comparison.folder / "baselines.parquet"), table)


@pytest.mark.slow
def test_doses_are_chosen_by_the_overall_score_of_the_choosing_queries(table, comparison):
    scored = pd.read_parquet(comparison.folder / "baselines" / "select scores.parquet")
    scored = headline(scored, scored[(scored.method == "instruction") & (scored.alpha == 1)])
    fine = scored[scored.alpha != 0].groupby(["method", "emotion", "alpha"])["overall"].mean().fillna(0)
    overall = table[(table.measure == "overall") & (table.emotion != "all") & (table.method != "unsteered")]
    for (method, emotion), own in overall.groupby(["method", "emotion"]):
        best, doses = own[own["at"] == "best"]["dose"].item(), set(fine[method, emotion].index)
        assert best == fine[method, emotion].idxmax(), (method, emotion)
        tried = own[own["at"] == "tried"].sort_values("dose").fillna({"value": 0}).set_index("dose")["value"]
        if method in ("instruction", "few_shot"):
            assert doses == set(tried.index) and tried.idxmax() == best
        else:
            assert doses == {float(f"{tried.idxmax() * factor:.3g}") for factor in (0.8, 1, 1.25)}, (method, emotion)
    ours = table[table.method == "emotion vector"]
    assert ours["setting"].unique() == ["site resid, part whole"], "attn is of no use here"
    tried = table.attrs["about"]["params"]["settings"]
    assert tried["emotion vector, site resid, part whole"] > tried["emotion vector, site attn, part whole"]


@pytest.mark.slow
def test_reported_values_are_those_of_the_texts(table, model, vectors, sets):
    own = table[(table.method == "emotion vector") & (table["at"] == "best") & (table.emotion == "calm")]
    queries, dose = list(sets[2]["query"]), own["dose"].iloc[0]
    told = render_prompts(model, queries, "calm")
    texts = generate(model, queries, steering=Steering(vectors, {"calm": dose}), max_new_tokens=6)
    plain, instructed = generate(model, queries, max_new_tokens=6), generate(model, told, raw=True, max_new_tokens=6)
    parts = [(texts, dose, "none"), (plain, 0.0, "none"), (instructed, 0.0, "prompt")]
    asked = sets[2][["query_id", "query"]]
    scored = pd.concat(
        [asked.assign(emotion="calm", alpha=a, control=c, text=t) for t, a, c in parts], ignore_index=True
    )
    scored = headline(emolab.score(scored, judges=JUDGE, model=model)).iloc[: len(queries)]
    found = own.set_index("measure")["value"]
    for measure in ("emotion", "adherence", "fluency"):
        assert found[measure] == pytest.approx(scored[f"{measure}_score"].mean(), rel=1e-6), measure
    assert found["overall"] == pytest.approx(scored["overall"].mean(), rel=1e-6)
    kls = next_token_kl(model, render_prompts(model, queries), plain, steering=Steering(vectors, {"calm": dose}))
    assert found["damage"] == pytest.approx(p95_kl(kls), rel=1e-3)


@pytest.mark.slow
def test_equal_damage_is_that_of_the_instruction(table, comparison, model, responses, sets):
    queries = list(sets[1]["query"])
    answers, targets = generate(model, queries, max_new_tokens=6), table.attrs["about"]["params"]["target_kl"]
    told = instruction_method(model)
    equal = table[(table["at"] == "equal damage") & (table.measure == "damage") & (table.emotion != "all")]
    for emotion, target in targets.items():
        wording = equal[(equal.method == "instruction") & (equal.emotion == emotion)]["dose"].item()
        assert p95_kl(told.kls(queries, answers, [{emotion: wording}])[0]) == pytest.approx(target, abs=1e-3)
    names = (*STEERING, "lora")
    methods = build_methods(comparison, responses, names, max_new_tokens=6)
    taken = table.drop_duplicates("method").set_index("method")["setting"]
    for row in equal[equal.method.isin(names)].itertuples():
        (method,) = (m for m in methods if m.name == row.method and m.setting == taken[m.name])
        found = p95_kl(method.kls(queries, answers, [{row.emotion: row.dose}])[0])
        assert found == pytest.approx(targets[row.emotion], rel=0.06), (row.method, row.emotion)


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_was(table, comparison, responses, sets, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "stable", repr)  # a judge of one's own is another one in every process
    kept = replace(comparison, out=tmp_path)
    few = {"methods": ("instruction", "emotion vector"), **OPTIONS}
    measured = [c for c in COLUMNS if c not in ("seconds", "speed")]
    whole = table[table.method.isin([*few["methods"], "unsteered"])][measured].reset_index(drop=True)
    calls = []

    def failing(*args, **kwargs):
        if len(calls) == 7:
            raise RuntimeError("power cut")
        calls.append(1)
        return generate(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(making, "generate", failing)
        compare_methods(kept, responses, *sets[1:], **few)
    again = compare_methods(kept, responses, *sets[1:], **few)
    pd.testing.assert_frame_equal(again[measured].reset_index(drop=True), whole)
    (tmp_path / "baselines.parquet").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(making, "generate", None)  # nothing is left to generate
        again = compare_methods(kept, responses, *sets[1:], **few)
    pd.testing.assert_frame_equal(again[measured].reset_index(drop=True), whole)
    monkeypatch.setattr(compare, "generate", None)  # nor to measure, where the table is whole
    pd.testing.assert_frame_equal(compare_methods(kept, responses, *sets[1:], **few), again)
    with pytest.raises(EmolabError, match="other settings"):
        compare_methods(replace(kept, seed=4), responses, *sets[1:], **few)


def test_a_damage_out_of_reach_leaves_a_method_out(model, vectors, responses, sets, monkeypatch):
    def unreachable(*args, **kwargs):
        raise EmolabError("out of reach")

    monkeypatch.setattr(compare, "dose_at_damage", unreachable)
    comparison = Comparison(model, vectors, Setting())
    with pytest.warns(UserWarning, match="left out at equal damage for (joy|calm)"):
        table = compare_methods(comparison, responses, *sets[1:], methods=("emotion vector",), **OPTIONS)
    assert set(table["method"]) == {"emotion vector", "unsteered"} and set(table["at"]) == {"tried", "best"}


def test_what_is_learned_from_is_not_chosen_with(model, vectors, responses, sets):
    with pytest.raises(EmolabError, match="responses and in queries_select"):
        compare_methods(Comparison(model, vectors), responses, sets[0], sets[2], **OPTIONS)


@pytest.mark.slow
def test_the_summary_is_json(table):
    found = json.loads(json.dumps(summary_of(table), allow_nan=False))
    assert set(found) == {*making.METHODS, "unsteered"}
    ours = found["emotion vector"]
    best = table.query("method == 'emotion vector' and at == 'best' and emotion == 'all'")
    row = best.set_index("measure").loc["overall"]
    assert ours["best"]["overall"] == [round(x, 4) for x in (row.value, row.lo, row.hi)]
    assert ours["can_dose"] and ours["can_mix"] and not found["instruction"]["can_dose"]
    assert "equal damage" not in found["few_shot"] and found["random"]["seconds"] is None
    assert ours["seconds"] > 0 and 0.05 < ours["speed"] < 20


@pytest.mark.slow
def test_on_the_bundled_model_vectors_and_instruction_beat_a_random_direction():
    model = load_model(WEIGHTS)
    queries = mini_queries()
    train, held = (queries[queries.split == s].drop_duplicates("situation") for s in ("train", "heldout"))
    responses = emolab.collect_responses(model, train.head(10), emotions=("anger", "joy"))
    vectors = extract_vectors(model, responses, sites=("attn",))
    names = ("instruction", "emotion vector", "random")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "embed", EMBED)
        comparison = Comparison(model, vectors, Setting(site="attn"))
        table = compare_methods(comparison, responses, train.iloc[10:15], held.head(8), methods=names)
    rows = table[(table.emotion == "all") & (table.measure == "overall") & (table["at"] == "best")].set_index("method")
    for method in names[:2]:
        assert rows.loc[method, "lo"] > rows.loc["random", "hi"] and rows.loc[method, "value"] > 0.6
    kl = table[(table.emotion == "all") & (table.measure == "damage") & (table["at"] == "equal damage")]
    assert kl.set_index("method").loc["emotion vector", "value"] > 0.5
