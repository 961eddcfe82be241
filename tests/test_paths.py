"""A path is read as people write it: "~" is the home folder in every call and option; what is no path is refused."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch

import emolab
from emolab import plot
from emolab.base.errors import EmolabError
from emolab.base.folders import writing
from emolab.base.storage import user_path, write_json
from emolab.comparisons.comparison import Comparison
from emolab.comparisons.lora import Training, fit_lora
from emolab.judges.classifiers import load_classifier
from emolab.models.fetch import cache_folder
from emolab.plot.save import adopt_figures, check_figures, read_manifest, save_figure
from emolab.steering.gguf import from_gguf, to_gguf
from emolab.studies.cli import main
from emolab.studies.figures import read_summary, run_figures
from emolab.studies.report import write_report
from emolab.studies.two_runs import compare_runs
from emolab.vectors import from_published, from_tensors
from tests import oracle, tiny
from tests.judges.test_model_judges import bert
from tests.judges.test_model_judges import write as write_classifier
from tests.refusing import judge
from tests.studies.test_report import run  # noqa: F401  (a fixture)


def few(w):
    return w.queries.head(2)


def saved(w, directory="~/figures"):
    return save_figure(plot.norms(w.vectors), "norms", directory=directory)


def written(name):
    """A file in the home folder, as other programs leave them there."""

    def write(w, home):
        path = home / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".csv":
            pd.DataFrame({"label": ["joy", "neutral"], "text": ["so happy", "a road"]}).to_csv(path, index=False)
        elif name == "own.json":
            path.write_text(json.dumps({"joy": ["tell me about the sun ."]}))
        elif name == "published/m_joy.json":
            path.write_text(json.dumps({str(layer): [[1.0] * w.model.d_model] for layer in range(3)}))
        elif name == "plain.safetensors":
            safetensors.torch.save_file({"joy": torch.ones(3, w.model.d_model)}, path)
        elif name == "v.safetensors":
            w.vectors.save(path)
        elif name == "response_means.safetensors":
            w.means.save(path)
        elif name == "v.gguf":
            to_gguf(w.vectors, path, {"joy": 1.0})
        elif name == "figures/norms.svg":
            saved(w, path.parent)
        elif name == "judge":
            write_classifier(path, bert(["joy", "entailment"]))
        elif name == "run/summary.json":
            write_json(path, {"model": "m"})
        elif name == "talker":
            tiny.save(path, *oracle.talker())
        return path

    return write


# function: (call, the file in the home folder that it writes)
WRITE = {
    "collect_responses": (lambda w: w.collect(out="~/x"), "x/responses.parquet"),
    "response_means": (
        lambda w: emolab.response_means(w.model, w.responses, sites=("resid",), out="~/x"),
        "x/response_means.safetensors",
    ),
    "extract_vectors": (
        lambda w: emolab.extract_vectors(w.model, None, means=w.means, out="~/x"), "x/vectors.safetensors",
    ),
    "sweep": (lambda w: w.sweep(few(w), out="~/x"), "x/sweep.parquet"),
    "find_breaking": (
        lambda w: emolab.find_breaking(w.model, emolab.Steering(w.vectors, {"joy": 1.0}), few(w), out="~/x"), "x",
    ),
    "head_effects": (
        lambda w: emolab.head_effects(
            w.model, emolab.extract_vectors(w.model, w.responses, sites=("head",)), w.responses,
            test=emolab.HeadTest(words={"joy": ["sun"], "sadness": ["rain"]}, n_queries=1), screen=1, out="~/x",
        ),
        "x/heads.parquet",
    ),
    "fit_lora": (
        lambda w: fit_lora(w.model, w.responses, "joy", training=Training(steps=1), out="~/x"),
        "x/lora_joy.safetensors",
    ),
    "write_stories": (
        lambda w: emolab.experiments.write_stories(w.model, ["joy"], ["park"], out="~/stories", max_new_tokens=3),
        "stories/stories.parquet",
    ),
    "Comparison": (
        lambda w: emolab.compare_methods(
            Comparison(w.model, w.vectors, emolab.Setting(site="attn"), out="~/x"),
            w.responses, emolab.load_queries({"neutral": ["the sea ?"]}), emolab.load_queries({"neutral": ["rain ?"]}),
            methods=("emotion vector",), judges=judge(), max_new_tokens=1,
        ),
        "x/baselines/comparison.json",
    ),
    "study": (lambda w: pytest.raises(EmolabError, emolab.study, w.model, out="~/x", queries=few(w)), "x"),
    "compare_runs": (lambda w: pytest.raises(EmolabError, compare_runs, "~/a", "~/b", out="~/x"), "x"),
    "EmotionVectors.save": (lambda w: w.vectors.save("~/x.safetensors"), "x.safetensors"),
    "ResponseMeans.save": (lambda w: w.means.save("~/x.safetensors"), "x.safetensors"),
    "to_gguf": (lambda w: to_gguf(w.vectors, "~/x.gguf", {"joy": 1.0}), "x.gguf"),
    "save_figure": (saved, "figures/norms.svg"),
    "writing": (lambda w: writing("~/x").__enter__(), "x"),
}  # fmt: skip
# function: (the file in the home folder that it reads, call)
READ = {
    "load_queries": ("own.json", lambda w: emolab.load_queries(["how was it ?"], against="~/own.json")),
    "load_queries, source": ("own.json", lambda w: emolab.load_queries("~/own.json")),
    "responses_from_texts": ("own.csv", lambda w: emolab.responses_from_texts("~/own.csv")),
    "labelled": ("own.csv", lambda w: emolab.responses_from_texts(Path("~/own.csv"))),
    "EmotionVectors.load": ("v.safetensors", lambda w: emolab.EmotionVectors.load("~/v.safetensors")),
    "load_vectors": ("v.safetensors", lambda w: emolab.load_vectors("~/v.safetensors")),
    "ResponseMeans.load": (
        "response_means.safetensors", lambda w: emolab.ResponseMeans.load("~/response_means.safetensors"),
    ),
    "from_published": ("published/m_joy.json", lambda w: from_published("~/published", model=w.model)),
    "from_tensors": ("plain.safetensors", lambda w: from_tensors("~/plain.safetensors", site="resid")),
    "from_gguf": ("v.gguf", lambda w: [from_gguf("~/v.gguf"), from_gguf({"joy": "~/v.gguf"}, model=w.model)]),
    "ClassifierJudge": ("judge", lambda w: emolab.judges.ClassifierJudge("~/judge")),
    "load_classifier": ("judge", lambda w: load_classifier("~/judge", None)),
    "NLIJudge": ("judge", lambda w: emolab.judges.NLIJudge("~/judge")),
    "read_summary": ("run/summary.json", lambda w: read_summary("~/run")),
    "read_manifest": ("figures/norms.svg", lambda w: read_manifest("~/figures")["norms"]),
    "check_figures": ("figures/norms.svg", lambda w: pytest.fail() if check_figures("~/figures") else 0),
    "adopt_figures": (
        "figures/norms.svg", lambda w: adopt_figures(["norms"], "~/figures", "~/other") or read_manifest("~/other"),
    ),
    "load_model": ("talker", lambda w: emolab.load_model("~/talker")),
}  # fmt: skip
ELSEWHERE = {"write_report", "run_figures"}  # tested below
OWN = "emolab.base.storage", "emolab.plot.save.figures_directory"  # what the others go through


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, and another one to work in, into which nothing may be written."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert not list((tmp_path / "here").iterdir()), "a folder of that name was made"


def takes_path():
    """(module, function) for all that take a path of a user."""
    for info in pkgutil.walk_packages(emolab.__path__, "emolab."):
        module = importlib.import_module(info.name) if not info.name.endswith("__main__") else None
        for name, value in vars(module).items() if module else ():
            if name.startswith("_") or getattr(value, "__module__", "") != info.name:
                continue
            functions = {name: value} if inspect.isfunction(value) else {}
            for method, function in vars(value).items() if inspect.isclass(value) else ():
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function) and (method == "__init__" or not method.startswith("_")):
                    functions[name if method == "__init__" else f"{name}.{method}"] = function
            for known, function in functions.items():
                given = {k: v for k, v in getattr(function, "__annotations__", {}).items() if k != "return"}
                if any("str | Path" in str(kind) for kind in given.values()):
                    yield info.name, known


def test_every_function_that_takes_a_path_is_tried_here():
    found = {name for module, name in takes_path() if not f"{module}.{name}".startswith(OWN) and name != "of_run"}
    assert found - {*WRITE, *READ} == ELSEWHERE
    assert len(found) > 20


@pytest.mark.filterwarnings("ignore:.*left out at equal damage")  # a model that answers with nothing
@pytest.mark.filterwarnings("ignore:probabilities of judge")  # a judge of these tests
@pytest.mark.parametrize("name", WRITE)
def test_written_at_home(world, home, name):
    call, path = WRITE[name]
    call(world)
    assert (home / path).exists()


@pytest.mark.filterwarnings("ignore:.*has no label for texts without emotion")
@pytest.mark.parametrize("name", READ)
def test_read_from_home(world, home, name):
    path, call = READ[name]
    assert written(path)(world, home).exists()
    assert call(world) is not None


def test_a_run_at_home(run, home, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HOME", str(run.parent))
    assert write_report(f"~/{run.name}") == run / "report.html" and (run / "report.html").exists()
    with pytest.raises(EmolabError, match=f"no file .*{run.name}/vectors.safetensors"):
        run_figures(f"~/{run.name}")


def test_variables(world, home, monkeypatch):
    monkeypatch.setenv("EMOLAB_CACHE", "~/cache")
    assert cache_folder() == home / "cache"
    monkeypatch.setenv("EMOLAB_FIGURES", "~/drawn")
    saved(world, None)
    assert (home / "drawn" / "norms.pdf").exists()


def test_the_command(world, home, capsys):
    """With "=", which no shell expands."""
    for name in ("talker", "own.json", "v.safetensors"):
        written(name)(world, home)
    model = "--model=~/talker"
    assert main(["extract", model, "--out=~/x", "--queries=~/own.json", "--emotions=joy"]) == 0
    assert (home / "x/vectors.safetensors").exists()
    steer = ["steer", "--model", str(world.model.source), "--vectors=~/v.safetensors", "--set=joy=1", "--out=~/y"]
    assert main([*steer, "--max-new-tokens=2", "tell me"]) == 0 and (home / "y/steered.json").exists()
    assert main(["info", "~/v.safetensors"]) == 0 and main(["info", "--check=~/talker"]) in (0, 2)
    capsys.readouterr()
    sweep = ["sweep", "--model", str(world.model.source), "--vectors=~/v.safetensors", "--queries=~/own.json"]
    sweep += ["--alphas", "1", "--emotions", "joy", "--controls", "random", "--out=~/z"]
    assert main(sweep) == 0
    assert f"2 texts in {home / 'z/sweep.parquet'}" in capsys.readouterr().out
    for command in (["score", "--out=~/none"], ["figures", "--out=~/none"], ["info", "~/none"]):
        assert main(command) == 2 and str(home / "none") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("~nobody-of-that-name/x", "'~nobody-of-that-name/x' names no home folder .*write the path from its root on"),
        ("a\0b", r"'a\\x00b' is no path; expected that of a file or folder"),
        ("\ud800", r"'\\ud800' cannot be the name of a file here \(utf-8\)"),
        (3, "3 is no path"),
        (None, "None is no path"),
    ],
)
def test_what_is_no_path(world, path, pattern):
    for call in (user_path, world.vectors.save, emolab.EmotionVectors.load, from_published):
        with pytest.raises(EmolabError, match=pattern):
            call(path)


def test_a_home_folder_that_does_not_exist_holds_no_model():
    with pytest.raises(EmolabError, match="'~nobody-of-that-name/m' names no home folder"):
        emolab.load_model("~nobody-of-that-name/m")
