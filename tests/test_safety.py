"""A file or a text from a stranger cannot hurt: no pickle, no path out of its folder, no live HTML, no network.

Damaged and forged files, and manifests that lead out of their folder: tests/test_fuzz.py.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from packaging.utils import canonicalize_name

from emolab import plot
from emolab.base.errors import EmolabError
from emolab.base.storage import write_json
from emolab.models.load import load_model
from emolab.models.prompts import render_prompts
from emolab.plot.save import save_figure
from emolab.studies.report import write_report
from emolab.widgets import SteeringPanel, head_view, token_view
from tests import tiny
from tools.gallery import gallery

ROOT = Path(__file__).parent.parent
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script><b onmouseover='x()'>", "a&lt;b")
hostile = pytest.mark.parametrize("text", HOSTILE, ids=["script", "image", "end", "entity"])


# --- no pickle


def _calls(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_module_reads_pickles():
    """By syntax, so that words in texts do not count. What Dask sends between its own processes is no file."""
    unsafe = {"torch.load", "np.load", "numpy.load", "pd.read_pickle", "joblib.load", "eval", "exec", "yaml.load"}
    found = []
    for file in sorted((ROOT / "emolab").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found += [f"{file.name}: {name}" for name, _ in _calls(tree) if name in unsafe]
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{file.name}: {n}" for n in names if n.split(".")[0] in ("pickle", "dill", "marshal", "shelve")]
    assert not found


def test_weights_are_read_from_safetensors_only():
    """Every `from_pretrained` that reads weights says so."""
    seen = 0
    for file in sorted((ROOT / "emolab").rglob("*.py")):
        for name, call in _calls(ast.parse(file.read_text(encoding="utf-8"))):
            if re.fullmatch(r"AutoModel\w*\.from_pretrained", name):
                given = {k.arg: ast.unparse(k.value) for k in call.keywords}
                assert given.get("use_safetensors") == "True", f"{file.name}, line {call.lineno}"
                seen += 1
    assert seen >= 2


class Planted:
    """Unpickled, it runs code."""

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"])
def test_a_directory_with_a_pickle_only_is_refused_unread(tiny_llama_dir, tmp_path, name):
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((tiny_llama_dir / file).read_bytes())
    bomb = Planted()
    bomb.path = tmp_path / "ran"
    torch.save({"x": bomb}, tmp_path / name)
    with pytest.raises(EmolabError, match=f"{re.escape(name)}, a pickle, .* never reads one; .*save_pretrained"):
        load_model(tmp_path, device="cpu")
    assert not bomb.path.exists()


def test_an_adapter_that_is_a_pickle_is_refused(tmp_path):
    write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "mini"})
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(EmolabError, match=r"adapter_model\.bin, a pickle"):
        load_model(tmp_path, device="cpu")


def test_a_pickle_beside_safetensors_is_not_touched(tiny_llama, tiny_llama_dir, tmp_path):
    for file in tiny_llama_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n")
    assert load_model(tmp_path, device="cpu").fingerprint == tiny_llama.fingerprint


# --- no path out of its folder


def test_labels_become_no_paths(tiny_llama, tmp_path):
    """An emotion is any text; a file that is named by it stays in its folder."""
    pytest.importorskip("peft")
    from emolab.comparisons.lora import Training, fit_lora

    label, folder = "../../joy", tmp_path / "a" / "b" / "run"
    rows = [("q", "how ?", c, render_prompts(tiny_llama, ["how ?"])[0], "a dog .") for c in ("neutral", label)]
    answers = pd.DataFrame(rows, columns=["query_id", "query", "condition", "prompt", "text"])
    fit_lora(tiny_llama, answers, label, training=Training(rank=1, steps=1), out=folder)
    [file] = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert file.parent == folder and file.name.startswith("lora_")


# --- no live HTML


class Page(HTMLParser):
    """What a browser would find: tags and attributes of `html`."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words += data


def assert_dead(html: str, *, scripts: int = 0, images: int = 0) -> Page:
    """No tag, no handler and no link of a stranger's: only our own scripts and images."""
    page = Page(html)
    assert page.tags.count("script") == scripts and page.tags.count("img") == images
    assert not {"iframe", "object", "embed", "svg", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not [v for name, v in page.attributes if name in ("href", "src") and (v or "").startswith("javascript")]
    return page


@hostile
def test_the_report_shows_texts_as_texts(tmp_path, text):
    cell = {"best_alpha": 1.5, "target_share": 0.75, "target_interval": [0.5, 0.9], "unsteered_share": 0.1}
    cell |= {"random_share": 0.125, "shuffled_share": 0.2, "adherence_ratio": 0.8, "perplexity_ratio": None, "n": 4}
    cell |= {"repetition": 0.02, "named_share": 0.4, "refusal_share": 0.0}
    summary = {"model": text, "seed": 3, "n_queries": {"extract": 4, "select": 2, "report": 3}}
    summary |= {"setting": {"site": text, "layers": text, "part": text}, "steering": {text: cell}}
    summary |= {"instruction_following": {text: 1.0}, "geometry": {"not_measured": text}}
    summary["claims"] = {"linear": {"verdict": text, "condition": text, "evidence": {}}}
    method = {"seconds": 1.0, "speed": 1.0, "can_dose": True, "can_mix": False, "best": {"emotion": [0.5, 0.4, 0.6]}}
    summary["baselines"] = {text: method}
    write_json(tmp_path / "summary.json", summary)
    write_json(tmp_path / "manifest.json", {text: text})
    rows = [("q0", text, text, alpha, "none", text) for alpha in (0.0, 1.5)]
    table = pd.DataFrame(rows, columns=["query_id", "query", "emotion", "alpha", "control", "text"])
    table.to_parquet(tmp_path / "scores.parquet", index=False)
    fig = Figure()
    fig.subplots().plot([0, 1])
    save_figure(fig, "norms", caption=text, alt=text, data=pd.DataFrame({"x": [1]}), directory=tmp_path / "figures")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    page = assert_dead(html, images=1)  # the figure
    assert page.words.count(text) >= 8 and "script-src" not in html and "default-src 'none'" in html


@hostile
def test_views_show_texts_as_texts(tiny_llama, monkeypatch, text):
    vectors = tiny.random_vectors(tiny_llama, (text, "joy"))
    monkeypatch.setattr(tiny_llama, "name", text)
    assert text in assert_dead(token_view(tiny_llama, f"{text} park", vectors).html, scripts=1).words
    table = pd.DataFrame([(i, j, e, 0.1) for e in (text, "joy") for i in range(2) for j in range(2)])
    table.columns = ["layer", "head", "emotion", "share"]
    table.attrs["about"] = {"model": {"name": text}, "n": text}
    assert text in assert_dead(head_view(table).html, scripts=1).words


@hostile
def test_the_panel_without_a_kernel_shows_texts_as_texts(tiny_llama, monkeypatch, text):
    class Judge:
        labels, name = (text, "neutral"), text

        def __call__(self, texts):
            return np.full((len(texts), 2), 0.5)

    def write(self, turn, arms, each):
        for arm in arms:
            turn.answers[arm].ids, turn.answers[arm].pieces = [5], [text]

    monkeypatch.setattr("emolab.widgets.conversation.Conversation.write", write)
    vectors = tiny.random_vectors(tiny_llama, (text, "joy"))
    panel = SteeringPanel(tiny_llama, vectors, prompt=text, doses={text: 1.0}, judge=Judge())
    html = panel._texts()["text/html"]
    assert assert_dead(html).words.count(text) >= 2 and panel.texts["steered"] == text
    assert_dead(panel._status.value)
    panel.close()


@hostile
def test_tables_show_texts_as_texts(text):
    rows = pd.DataFrame({"emotion": [text, "joy"], "alpha": [0.0, 1.0], "text": [text, text], "top": [text, "joy"]})
    words = {"part": "whole", "emotion": text, "layer": 1, "head": -1, "direction": "raised", "rank": 0, "token": text}
    for html in (plot.text_table(rows, columns="alpha"), plot.words_table(pd.DataFrame([words])).to_html()):
        assert text in assert_dead(html).words


@pytest.mark.parametrize("text", [*HOSTILE, "x](javascript:alert(1)) [y", "` <b>", "a\n\n# b"], ids=range(7))
def test_the_gallery_shows_words_as_words(text):
    files = {"svg": f"{text}.svg", "png": "x.png", "csv": "data/x.csv"}
    entry = {"files": files, "caption": text, "alt": text, "notebook": f"{text}.ipynb", "function": text}
    page = gallery({"norms": entry})
    bare = re.sub(r"`[^`\n]*`|\\.", "", page)  # code and escaped marks are words
    assert not re.search(r"<\s*/?\w", bare)
    links = [unquote(link) for link in re.findall(r"\]\(([^)]*)\)", bare)]
    assert {"x.png", "data/x.csv"} <= set(links) and not [x for x in links if x.startswith("javascript")]
    assert len([line for line in page.splitlines() if line.startswith("#")]) == 3


def _written(call: ast.Call) -> bool:
    """Whether what is shown is taken from a column or a variable of texts, or written right there."""
    for node in ast.walk(call):
        name = getattr(node, "id", None) or getattr(node, "attr", None)
        column = node.slice.value if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) else None
        if {name, column} & {"text", "texts", "generate"}:
            return True
    return False


def test_notebooks_put_no_text_of_a_model_into_markdown():
    """Markdown and HTML cells hold numbers and names; what a model wrote is shown in escaped tables."""
    seen = 0
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            code = "".join(cell["source"])
            for call in ast.walk(ast.parse(code)) if cell["cell_type"] == "code" else ():
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("Markdown", "HTML"):
                    seen += 1
                    assert not _written(call), f"{file.name}: {code[:80]}"
    assert seen >= 5


# --- no network unless asked

QUIET = """
import json, socket, sys
seen = []
def note(name, real):
    def call(*args, **kwargs):
        target = next((a for a in args if isinstance(a, (tuple, str))), None)
        if name == "getaddrinfo" or isinstance(target, tuple):  # unix sockets are named by a text
            seen.append(f"{name} {target}")
            raise OSError("no network here")
        return real(*args, **kwargs)
    return call
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, note(name, getattr(socket.socket, name)))
socket.getaddrinfo = note("getaddrinfo", socket.getaddrinfo)

from pathlib import Path
import pandas as pd
import emolab
from emolab.base.storage import write_json, write_parquet
out = Path(sys.argv[1])
model = emolab.load_model("smollm2")
queries = emolab.load_queries(split="train").head(2)
answers = emolab.collect_responses(model, queries, emotions=("joy", "fear"), out=out, max_new_tokens=8)
vectors = emolab.extract_vectors(model, answers, sites=("resid",), out=out)
held = emolab.load_queries(split="heldout").head(1)
table = emolab.sweep(model, vectors, held, alphas=(0, 1), controls=("random",), out=out, max_new_tokens=8)
scored = emolab.score(table, model=model)
write_parquet(out / "scores.parquet", scored)
write_json(out / "manifest.json", {})
counts = {"extract": 2, "select": 0, "report": 1}
write_json(out / "summary.json", {"model": "smollm2", "seed": 0, "n_queries": counts, "steering": {}, "geometry": {},
    "setting": {"site": "resid", "layers": "all", "part": "whole"}, "instruction_following": {}})
from emolab.studies.report import write_report
write_report(out)
talkers = [m for m in ("wandb", "sentry_sdk", "posthog", "segment", "opentelemetry") if m in sys.modules]
print(json.dumps({"seen": seen, "talkers": talkers, "columns": list(scored), "n": len(scored)}))
"""


@pytest.mark.slow
def test_nothing_is_fetched_or_told_unless_asked(tmp_path):
    """From import to report with the default model and the default judges, with the hub not even switched off."""
    env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    env |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", QUIET, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seen"] == [] and found["talkers"] == []
    assert found["n"] > 0 and {"p_joy", "adherence", "perplexity"} <= set(found["columns"])
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_block_would_notice(tmp_path):
    code = QUIET.split("from pathlib")[0] + "import urllib.request\n"
    code += "try: urllib.request.urlopen('http://127.0.0.1:9/')\nexcept OSError: print(len(seen))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(done.stdout) >= 1, done.stderr


# --- pinned, with hashes


def _pins(file: str) -> dict[str, str]:
    found = {}
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
        if match:
            assert canonicalize_name(match[1]) not in found, f"{file} names {match[1]} twice"
            found[canonicalize_name(match[1])] = match[2]
    return found


def test_the_lock_file_holds_the_versions_of_constraints():
    locked, pinned = _pins("requirements.lock"), _pins("constraints.txt")
    assert {name: locked.get(name) for name in pinned} == pinned
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for name in set(locked) - set(pinned):  # what other systems, or CUDA, need besides
        line = re.search(rf"^{name}==\S+ ; .*(sys_platform|os_name|platform_system)", text, re.M)
        assert line, f"{name} is not in constraints.txt: make requirements.lock again, as its head says"


def test_every_locked_package_has_hashes_and_comes_from_nowhere_else():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert text.startswith("# ") and "pip install --require-hashes -r requirements.lock" in text
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    entries = re.split(r"\n(?=\S)", body.strip())
    assert len(entries) == len(_pins("requirements.lock")) > 150
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]
    assert not re.search(r"https?://|file:|--index|--extra-index|--find-links|@ |^-e|\.whl", body, re.M)
    assert body.count("\n    --hash") == body.count("--hash=sha256:")
