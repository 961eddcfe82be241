import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from emolab.answers import jobs
from emolab.answers.queries import load_queries
from emolab.answers.responses import COLUMNS, collect_responses, responses_from_texts
from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError

QUERIES = load_queries(
    {"joy": ["how was the park ?", "a walk in rain"], "fear": ["the dark house"], "neutral": ["a road"]}
)
SETTINGS = {"emotions": ("joy", "fear"), "max_new_tokens": 6, "writing": Writing(batch_size=3)}


def test_pairing_all_asks_every_query_under_every_condition(tiny_llama):
    table = collect_responses(tiny_llama, QUERIES, **SETTINGS)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 4 * 3
    assert table.groupby("condition")["query_id"].nunique().to_dict() == {"neutral": 4, "joy": 4, "fear": 4}
    assert list(table["condition"][:3]) == ["neutral", "joy", "fear"]
    joy = table[(table["query_id"] == "u-0001") & (table["condition"] == "joy")].iloc[0]
    assert joy["prompt"].count(tiny_llama.tokenizer.bos_token) == 1 and "Answer with joy." in joy["prompt"]
    counted = [len(tiny_llama.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in table["text"]]
    assert list(table["n_tokens"]) == counted


def test_pairing_own_asks_a_query_under_its_own_emotion(tiny_llama):
    table = collect_responses(tiny_llama, QUERIES, pairing="own", **SETTINGS)
    asked = table.groupby("query_id")["condition"].agg(list).to_dict()
    both = {"u-0001": ["neutral", "joy"], "u-0002": ["neutral", "joy"], "u-0003": ["neutral", "fear"]}
    assert asked == {**both, "u-0004": ["neutral", "joy", "fear"]}
    only = collect_responses(tiny_llama, QUERIES, pairing="own", **{**SETTINGS, "emotions": ("joy",)})
    assert "u-0003" not in set(only["query_id"])  # fear is not studied here


def test_templates_replace_the_wording(tiny_llama):
    templates = {"neutral": "{query} then", "joy": "happy {query}"}
    table = collect_responses(
        tiny_llama, ["a road"], emotions=("joy",), max_new_tokens=6, writing=Writing(templates=templates)
    )
    assert ["a road then" in table["prompt"][0], "happy a road" in table["prompt"][1]] == [True, True]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_killed_run_goes_on_where_it_was(tiny_llama, tmp_path, monkeypatch, temperature):
    settings = {**SETTINGS, "writing": Writing(temperature, seed=3, batch_size=3)}
    undisturbed = collect_responses(tiny_llama, QUERIES, **settings)
    generate, calls = jobs.generate, []

    def dies_in_the_third_call(model, prompts, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(prompts))
        return generate(model, prompts, **options)

    monkeypatch.setattr(jobs, "generate", dies_in_the_third_call)
    with pytest.raises(KeyboardInterrupt):
        collect_responses(tiny_llama, QUERIES, out=tmp_path, **settings)
    assert len(pd.read_parquet(tmp_path / "responses.parquet")) == sum(calls) == 6

    counted = []
    monkeypatch.setattr(jobs, "generate", lambda m, p, **o: counted.append(len(p)) or generate(m, p, **o))
    resumed = collect_responses(tiny_llama, QUERIES, out=tmp_path, **settings)
    assert sum(counted) == 12 - 6
    assert_frame_equal(resumed, undisturbed)
    assert_frame_equal(pd.read_parquet(tmp_path / "responses.parquet"), undisturbed)
    assert {p.name for p in tmp_path.iterdir()} == {"responses.parquet", ".lock"}  # no temporary file is left

    again = collect_responses(tiny_llama, QUERIES, out=tmp_path, **settings)
    assert sum(counted) == 12 - 6 and again.equals(resumed)


def test_a_run_with_other_settings_is_refused(tiny_llama, tmp_path):
    collect_responses(tiny_llama, QUERIES, out=tmp_path, **SETTINGS)
    with pytest.raises(EmolabError, match="max_new_tokens: there 6, here 7"):
        collect_responses(tiny_llama, QUERIES, out=tmp_path, **{**SETTINGS, "max_new_tokens": 7})
    with pytest.raises(EmolabError, match="writing: there .*penalty.: 1.1}, here .*penalty.: 1.0}"):
        other = {**SETTINGS, "writing": Writing(repetition_penalty=1)}
        collect_responses(tiny_llama, QUERIES, out=tmp_path, **other)
    with pytest.raises(EmolabError, match="prompts"):
        collect_responses(tiny_llama, QUERIES[:2], out=tmp_path, **SETTINGS)
    (tmp_path / "responses.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(EmolabError, match="damaged"):
        collect_responses(tiny_llama, QUERIES, out=tmp_path, **SETTINGS)


def test_answers_name_the_situation_of_their_query(tiny_llama):
    queries = QUERIES.assign(situation=["park", "park", None, ""])
    table = collect_responses(tiny_llama, queries, **SETTINGS)
    assert table.groupby("query_id")["situation"].first().to_list() == ["park", "park", "", ""]


def test_responses_from_texts():
    table = responses_from_texts({"joy": ["a", "b"], "neutral": ["c"]})
    assert tuple(table.columns) == COLUMNS
    assert list(table["condition"]) == ["joy", "joy", "neutral"]
    assert set(table["query"]) == {""} and table["query_id"].is_unique and table["n_tokens"].isna().all()
    assert table["prompt"].isna().all() and set(responses_from_texts({"joy": ["a"]}, query=None)["prompt"]) == {""}
    other = responses_from_texts({"joy": ["a"]}, query="Tell me more.")
    assert set(other["query"]) == {"Tell me more."} and other["prompt"].isna().all()


def test_a_table_or_a_csv_of_labelled_texts(tmp_path):
    odd = 'he said "oh", so'
    rows = [("low arousal", "quiet"), ("neutral", "a road"), ("low arousal", "null"), ("Überraschung", odd)]
    table = pd.DataFrame(rows, columns=["label", "text"])
    table.assign(id=7).to_csv(tmp_path / "mine.csv", index=False)
    expected = responses_from_texts({"low arousal": ["quiet", "null"], "neutral": ["a road"], "Überraschung": [odd]})
    for source in (table, tmp_path / "mine.csv", str(tmp_path / "mine.csv")):
        pd.testing.assert_frame_equal(responses_from_texts(source), expected)
    numbers = responses_from_texts(pd.DataFrame({"label": [3, 27], "text": ["a", "b"]}))
    assert list(numbers["condition"]) == ["3", "27"]
