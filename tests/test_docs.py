"""docs/: what is written there is true of the code, its examples run, and the site builds without a network."""

from __future__ import annotations

import ast
import html
import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import yaml

import emolab
from emolab.studies.cli import _parser
from tests import docs_setup

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
README = (ROOT / "README.md").read_text(encoding="utf-8")
OURS = ("architecture.md", "explanation.md", "howto.md", "index.md", "model.md", "reference.md", "tutorial.md")
CODE = re.compile(r"^(<!-- not run: [^\n]+ -->\n)?```python\n(.*?)^```$", re.M | re.S)
HEADING = re.compile(r"^#+ (.*)$", re.M)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OURS if "```python" in PAGES[name]])
def test_examples_run(name, tmp_path, monkeypatch):
    """All blocks of a page in their order, as one would type them; a page may use what the tutorial makes."""
    monkeypatch.chdir(tmp_path)
    docs_setup.files(tmp_path)
    docs_setup.keep_short(monkeypatch)
    docs_setup.run_folder(tmp_path / "runs" / "mine")
    names = docs_setup.namespace() | {"vectors_of_mine": docs_setup.study()["vectors"]}
    for number, (skipped, code) in enumerate(CODE.findall(PAGES[name]), 1):
        compiled = compile(code, f"<{name}, block {number}>", "exec")
        if not skipped:
            exec(compiled, names)
    plt.close("all")


@pytest.mark.slow
def test_the_ten_lines_of_the_readme_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = next(code for _, code in CODE.findall(README) if code.startswith("import emolab"))
    names = {}
    exec(compile(code, "<README.md>", "exec"), names)
    assert capsys.readouterr().out.strip(), "a steered text"
    assert set(names["table"]["alpha"]) == {0, 0.75, 1.5} and names["fig"].axes
    plt.close("all")


def test_the_texts_of_the_readme_are_those_of_notebook_00():
    """Another set of texts in the notebook: bring the table under the first figure in line with it."""
    notebook = json.loads((ROOT / "notebooks" / "00_steer_in_five_minutes.ipynb").read_text(encoding="utf-8"))
    outputs = [output["data"].get("text/html", "") for c in notebook["cells"] for output in c.get("outputs", ())
               if "data" in output]  # fmt: skip
    [table] = [page for page in map("".join, outputs) if "<b>Question:</b>" in page]
    written = [plain(text) for text in re.findall(r'<div dir="auto">(.*?)</div>', table, re.S)]
    shown = README.split("<!-- texts -->")[1].split("<!-- end of texts -->")[0].strip().splitlines()[2:]
    cells = [cell.strip().removesuffix(" …") for row in shown for cell in row.strip("|").split(" | ")[1:]]
    assert cells == written[1:] and len(cells) == 3 * len(emolab.EMOTIONS)
    asked = f'"{plain(re.search("</b> (.*?)</p>", table)[1])}", the model answers unsteered: "{written[0]} …"'
    assert asked in README


def plain(marked: str) -> str:
    """The words of a piece of HTML."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", marked.replace("<br>", " "))).split())


def test_the_readme_names_what_there_is():
    for dotted in set(re.findall(r"\bemolab\.[A-Za-z_][\w.]*\w", README)):
        resolve(dotted)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for page, anchor in re.findall(r"\]\(docs/(\w+\.md)#([^)]+)\)", README):
        assert anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in HEADING.findall(PAGES[page])]


def test_names_that_are_written_exist():
    """`emolab.x.y` and emolab.x(...) anywhere, and keywords of calls of public functions, run or not."""
    for name in OURS:
        for dotted in sorted(set(re.findall(r"\bemolab\.[A-Za-z_][\w.]*\w", PAGES[name]))):
            resolve(dotted)
        for _, code in CODE.findall(PAGES[name]):
            for call in [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]:
                if ast.unparse(call.func).startswith("emolab.") and "(" not in ast.unparse(call.func):
                    known = inspect.signature(resolve(ast.unparse(call.func))).parameters
                    assert {k.arg for k in call.keywords} <= set(known), ast.unparse(call)


def resolve(dotted: str):
    """What a dotted name means: a module, or an attribute of one."""
    found, parts = emolab, dotted.split(".")[1:]
    for i, part in enumerate(parts):
        try:
            found = getattr(found, part)
        except AttributeError:
            found = importlib.import_module(".".join(["emolab", *parts[: i + 1]]))
    return found


def test_commands_parse():
    """Every `emolab ...` in a shell block is one that the command line takes."""
    import shlex

    commands = [
        line
        for name in OURS
        for block in re.findall(r"^```bash\n(.*?)^```$", PAGES[name], re.M | re.S)
        for line in block.splitlines()
        if line.startswith("emolab ")
    ]
    assert len(commands) > 2
    for command in commands:
        _parser().parse_args(shlex.split(command, comments=True)[1:])
    _parser().parse_args(["study", "--methods"])
    _parser().parse_args(["info", "runs/mine"])


def test_the_reference_holds_every_public_name():
    listed = re.findall(r"^::: (emolab\.\S+)$", PAGES["reference.md"], re.M)
    assert len(listed) == len(set(listed))
    for room in set(emolab._ROOMS) - {"base", "answers", "models", "steering"}:  # of these, functions alone
        assert any(f"{dotted}.".startswith(f"emolab.{room}.") for dotted in listed), room
    last = {dotted.split(".")[-1]: dotted for dotted in listed}
    assert set(emolab._PUBLIC) <= set(last), set(emolab._PUBLIC) - set(last)
    for name in emolab._PUBLIC:
        assert resolve(last[name]) is getattr(emolab, name)


def test_every_page_is_in_the_contents_and_every_link_leads_somewhere():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"(\S+\.md)$", config, re.M))
    assert set(PAGES) <= listed and all(name in PAGES or name == "figures/README.md" for name in listed)
    assert yaml.safe_load(config)["docs_dir"] == "docs"
    for name in OURS:
        for target in re.findall(r"\]\(([^)#\s]*)(?:#[^)]*)?\)", PAGES[name]):
            elsewhere = target == "../figures/README.md" or target.startswith("https://")
            assert elsewhere or (ROOT / "docs" / target).exists(), f"{name}: {target}"
        for page, anchor in re.findall(r"\]\((\w+\.md)?#([^)]+)\)", PAGES[name]):
            slugs = [re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in HEADING.findall(PAGES[page])]
            assert anchor in slugs, f"{name}: {page}#{anchor}"


def test_the_tutorial_names_every_notebook():
    for path in (ROOT / "notebooks").glob("0[0-6]_*.ipynb"):  # 07: teaching.md
        assert f"](../notebooks/{path.name})" in PAGES["tutorial.md"], path.name


def test_the_run_folder_is_told_as_it_is():
    """The files of howto.md are those that study writes: their names stand in its code."""
    table = PAGES["howto.md"].split("## Read the folder of a run")[1].split("## ")[0]
    names = re.findall(r"`([\w.]+/?)`", "".join(re.findall(r"^\| (`[^|]+) \|", table, re.M)))
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "emolab").rglob("*.py"))
    assert len(names) > 10 and [name for name in names if name.rstrip("/") not in source] == []


def test_the_rooms_of_the_architecture_are_those_that_are_there():
    """Each room once, in the order that `make lint` holds; every module that a row or a text names is a file."""
    page = PAGES["architecture.md"]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.+) \|$", page.split("## Where does it go?")[0], re.M)
    rooms = [room for names, _ in rows for room in re.findall(r"`(\w+)`", names)]
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    held = tools["importlinter"]["contracts"][0]["layers"]
    assert sorted(rooms) == sorted(held) and rooms[:11] == held[::-1][:11]
    for room, (_, told) in zip(rooms, rows[:11], strict=False):
        for name in re.findall(r"`(\w+)`", told):
            assert (ROOT / "emolab" / room / f"{name}.py").exists(), f"{room}: {name}"
    for path in re.findall(r"`(\w+/\w+(?:\.py)?)`", page):
        assert (
            list(ROOT.glob(f"{path.removesuffix('.py')}.py"))
            or (ROOT / "emolab" / f"{path}.py").exists()
            or (ROOT / "emolab" / path).exists()
        ), path
    picture = ET.parse(ROOT / "docs" / "architecture.svg").getroot()
    left, top, width, height = map(float, picture.attrib["viewBox"].split())
    for text in picture.iter("{http://www.w3.org/2000/svg}text"):
        assert left < float(text.attrib["x"]) < width and top < float(text.attrib["y"]) < height, text.text
    assert picture.find("{http://www.w3.org/2000/svg}desc").text


@pytest.mark.slow
def test_the_site_builds_and_fetches_nothing(tmp_path):
    """Without a network (an unshared one would be better, but needs rights): strict, and no page loads from outside."""
    pytest.importorskip("mkdocstrings", reason="the docs extra is not installed")
    # Not --quiet: it keeps warnings from being counted, and so from failing.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {
        path.relative_to(tmp_path).as_posix(): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")
    }
    assert {"index.html", "reference.html", "notebooks/00_steer_in_five_minutes.html"} <= set(pages)
    for name, page in pages.items():
        loaded = re.findall(r"""<(?:script|img|iframe)[^>]*\ssrc=["'](https?:)?//""", page)
        loaded += re.findall(r"""<link[^>]*rel=["']?stylesheet[^>]*href=["']https?://""", page)
        assert not loaded, name
    assert "&gt;&gt;&gt;" in pages["reference.html"] and "<blockquote>" not in pages["reference.html"]
