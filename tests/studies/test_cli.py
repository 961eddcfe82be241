"""The command line, in process, on a model directory and a user's own queries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch

import emolab
from emolab.judges import judges
from emolab.plot import save
from emolab.studies import pipeline
from emolab.studies.cli import main
from emolab.studies.plan import FULL, QUICK
from tests import oracle, tiny

COMMANDS = ("study", "extract", "steer", "sweep", "score", "figures", "info")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model directory, a query file with splits, a plain one, and room for runs."""
    root = tmp_path_factory.mktemp("cli")
    tiny.save(root / "talker", *oracle.talker())
    rows = oracle.queries(n_train=8, n_heldout=2).drop(columns="query_id").to_dict("records")
    (root / "queries.json").write_text(json.dumps({"description": "tests", "queries": rows}))
    (root / "own.json").write_text(json.dumps({"joy": ["tell me about the sun ."], "neutral": ["how was the road ?"]}))
    return root


@pytest.fixture(scope="module", autouse=True)
def light():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "embed", oracle.embed)
        patch.setattr(save, "_render", oracle.drawn_once)
        yield


@pytest.fixture(scope="module")
def extracted(place):
    options = ["--queries", str(place / "queries.json"), "--emotions", "joy", "fear"]
    assert main(["extract", "--model", str(place / "talker"), "--out", str(place / "extracted"), *options]) == 0
    return place / "extracted"


@pytest.fixture(scope="module")
def swept(place, extracted):
    arguments = ["sweep", "--model", str(place / "talker"), "--vectors", str(extracted / "vectors.safetensors")]
    arguments += ["--queries", str(place / "queries.json"), "--alphas", "-1", "0", "2", "--site", "attn", "resid"]
    assert main([*arguments, "--out", str(place / "swept")]) == 0
    return place / "swept"


def fails(capsys, *arguments) -> str:
    """The one line that a failing command writes to stderr."""
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("emolab: ") and "Traceback" not in captured.out, captured.err
    return lines[0]


def test_extract(extracted, place, capsys):
    vectors = emolab.EmotionVectors.load(extracted / "vectors.safetensors")
    assert vectors.emotions == ("fear", "joy") and vectors.sites == ("resid", "attn", "mlp", "head")
    responses = pd.read_parquet(extracted / "responses.parquet")
    assert len(responses) == 8 * 3, "the training queries of the file, under neutral and two emotions"
    own = ["extract", "--model", place / "talker", "--queries", place / "own.json", "--out", place / "own"]
    assert main([*map(str, own), "--emotions", "joy"]) == 0
    assert "vectors.safetensors" in capsys.readouterr().out.splitlines()[-1]
    assert set(pd.read_parquet(place / "own/responses.parquet")["query"]) == {
        "tell me about the sun .",
        "how was the road ?",
    }


@pytest.mark.slow
def test_a_console_of_few_letters_shows_what_it_can(tmp_path):
    """As where Windows sends the output into a file, or the locale is C."""
    vectors = tiny.random_vectors(emolab.load_model(oracle.talker()), ("joy", "喜び"))
    vectors.save(tmp_path / "v.safetensors")
    command = [sys.executable, "-m", "emolab", "info", str(tmp_path / "v.safetensors")]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, timeout=120)
    assert done.returncode == 0 and rb"joy, \u559c\u3073" in done.stdout, done.stderr[-500:]


def test_a_label_may_hold_an_equals_sign(extracted, place, capsys):
    common = ["steer", "--model", place / "talker", "--vectors", extracted / "vectors.safetensors"]
    assert "unknown emotion 'a=b'" in fails(capsys, *common, "--set=a=b=1.5", "tell me")
    assert "--set 'joy' is not EMOTION=NUMBER" in fails(capsys, *common, "--set=joy", "tell me")


@pytest.mark.parametrize(("layers", "unit"), [("1,2", "vector"), ("late", "residual")])
def test_steer(extracted, place, capsys, layers, unit):
    model = emolab.load_model(str(place / "talker"))
    vectors = emolab.EmotionVectors.load(extracted / "vectors.safetensors")
    options = {"site": "attn", "layers": [1, 2], "part": "specific", "unit": unit}
    steering = emolab.Steering(vectors, {"joy": 4.0, "fear": -2.5}, **options)
    prompts = ["tell me about the cat .", "how did you feel ?"]
    expected = emolab.generate(model, prompts, steering=steering, max_new_tokens=5)
    arguments = ["steer", "--model", place / "talker", "--vectors", extracted / "vectors.safetensors"]
    arguments += ["--set", "joy=4", "--set", "fear=-2.5", "--site", "attn", "--layers", layers, "--part", "specific"]
    arguments += ["--unit", unit]
    capsys.readouterr()
    assert main([*map(str, arguments), "--max-new-tokens", "5", "--out", str(place / "steered"), *prompts]) == 0
    assert capsys.readouterr().out == "\n\n".join(expected) + "\n"
    doses = {"joy": 4.0, "fear": -2.5}
    saved = json.loads((place / "steered/steered.json").read_text())
    assert saved == [{"prompt": p, "text": t, "doses": doses} for p, t in zip(prompts, expected, strict=True)]


def test_sweep_and_score(swept, place, capsys):
    table = pd.read_parquet(swept / "sweep.parquet")
    assert set(table["query"]) == {q["query"] for q in oracle.queries(8, 2).to_dict("records")[8:]}, "held out"
    assert set(table["site"]) == {"attn", "resid"} and set(table["alpha"]) == {-1.0, 0.0, 2.0}
    assert set(table["control"]) == {"none", "random", "shuffled"} and set(table["emotion"]) == {"joy", "fear"}
    capsys.readouterr()
    assert main(["score", "--model", str(place / "talker"), "--out", str(swept)]) == 0
    scored = pd.read_parquet(swept / "scores.parquet")
    pd.testing.assert_frame_equal(scored[list(table.columns)], table)
    assert {"p_joy", "top", "adherence", "perplexity", "perplexity_instructed", "distinct2", "repetition"} <= set(
        scored
    )
    shown = capsys.readouterr().out
    assert "target" in shown and "random" in shown


@pytest.mark.slow
def test_study_figures_and_info(place, capsys, monkeypatch):
    emolab.set_progress(True)
    monkeypatch.setattr(pipeline, "analyse", lambda *_, **__: {})
    out = place / "studied"
    options = ["--queries", str(place / "queries.json"), "--n-queries", "2", "2", "2", "--emotions", "joy", "fear"]
    options += ["--quick", "--methods", "instruction", "random"]
    assert main(["study", "--model", str(place / "talker"), "--out", str(out), *options]) == 0
    summary = json.loads((out / "summary.json").read_text(), parse_constant=pytest.fail)
    assert {"model", "instruction_following", "steering", "timings"} <= set(summary)
    assert set(summary["steering"]) == {"joy", "fear"} and set(summary["baselines"]) >= {"instruction", "random"}
    assert summary["n_queries"] == {"extract": 2, "select": 2, "report": 2}
    printed = capsys.readouterr().out
    assert "selection:" in printed and f"results in {out}" in printed.split("responses:")[0], "where, from the start"
    assert "18 responses" in printed and "98 sweep" in printed and "Expected on this machine: " in printed
    assert main(["info", str(out)]) == 0
    assert json.loads(capsys.readouterr().out) == summary
    monkeypatch.setattr("emolab.studies.figures.run_figures", lambda folder: [folder / "figures/norms.png"])
    assert main(["figures", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(out / "figures/norms.png")]
    assert (out / "figures/norms.png").exists()


def test_options_of_the_study_make_its_plan(place, monkeypatch):
    given = []
    monkeypatch.setattr(pipeline, "study", lambda model, **options: given.append((model, options)))
    command = ["study", "--model", str(place / "talker"), "--out", str(place / "no"), "--seed", "3"]
    few = ["--quick", "--methods", "random", "--n-queries", "3", "2", "1"]
    for more in ([], ["--quick"], few, ["--methods"], ["--dtype", "float32"]):
        assert main([*command, *more]) == 0
    plans = [options["plan"] for _, options in given]
    assert plans[:2] == [FULL, QUICK]
    assert plans[2:4] == [replace(QUICK, methods=("random",), n_queries=(3, 2, 1)), replace(FULL, methods=())]
    assert given[0][1]["queries"] is None and given[0][1]["seed"] == 3 and given[0][1]["emotions"] == emolab.EMOTIONS
    assert {model for model, _ in given[:4]} == {str(place / "talker")}, "the study itself chooses a precision"
    assert given[4][0].dtype == torch.float32


def test_info_of_vectors(extracted, capsys):
    for path in (extracted / "vectors.safetensors", extracted):
        capsys.readouterr()
        assert main(["info", str(path)]) == 0
        first, *rest = capsys.readouterr().out.splitlines()
        assert first.startswith("EmotionVectors(whole: fear, joy;")
        assert json.loads("\n".join(rest))["token_rule"] == "response"


def test_errors_are_one_line_and_code_2(place, extracted, swept, tmp_path, capsys):
    """Others are in tests/test_refusals_command.py."""
    model = ["--model", place / "talker"]
    vectors = ["--vectors", extracted / "vectors.safetensors"]
    bundled = fails(capsys, "steer", *model, "--set", "joy=1", "hello")
    assert "these vectors are of another model: 'smollm2'" in bundled
    assert "--set joy=1.5" in fails(capsys, "steer", *model, *vectors, "--set", "joy=much", "hello")
    bad_layers = fails(capsys, "steer", *model, *vectors, "--set", "joy=1", "--layers", "each", "hello")
    assert "neither all, late nor numbers" in bad_layers
    assert "run `emolab study" in fails(capsys, "info", tmp_path)
    again = ["sweep", *model, *vectors, "--queries", place / "queries.json", "--alphas", "7", "--out", swept]
    assert "made with other settings" in fails(capsys, *again)
    (tmp_path / "file").write_text("in the way")
    steer = ["steer", *model, *vectors, "--set", "joy=1", "--max-new-tokens", "2"]
    assert "file" in fails(capsys, *steer, "--out", tmp_path / "file", "tell me about the cat .")


def test_unfinished_and_damaged_sweeps(place, tmp_path, capsys):
    path = tmp_path / "sweep.parquet"
    pd.DataFrame({"row": [0], "text": ["a dog"]}).to_parquet(path)
    assert "unfinished" in fails(capsys, "score", "--model", place / "talker", "--out", tmp_path)
    path.write_bytes(b"PAR1 and no more")
    assert "missing or damaged" in fails(capsys, "score", "--model", place / "talker", "--out", tmp_path)


def test_wrong_words_and_missing_ones(capsys):
    for arguments in ([], ["dance"], ["steer", "hello"], ["sweep", "--alphas", "much"], ["study", "--n-queries", "1"]):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 2 and "usage: emolab" in capsys.readouterr().err


@pytest.mark.parametrize("imports", [False, True])
def test_interrupted(monkeypatch, capsys, imports):
    def interrupt(*_):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if imports:  # transformers takes it for an error of the module
                raise ModuleNotFoundError("requirements")  # noqa: B904
            raise

    monkeypatch.setattr("emolab.studies.figures.run_figures", interrupt)
    assert main(["figures"]) == 130
    told = capsys.readouterr().err
    assert "the same command goes on from there" in told and told.splitlines()[-1] == "emolab figures"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_takes_model_and_out(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert exit.value.code == 0 and "--model" in shown and "--out" in shown


def test_python_dash_m_emolab():
    done = subprocess.run([sys.executable, "-m", "emolab", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr
    assert all(command in done.stdout for command in COMMANDS)
