"""As a person would: a real JupyterLab, a real browser, notebooks run with all their cells, widgets moved and clicked.

    apt-get install chromium; python -m pytest -m browser          (CHROMIUM=... names another Chromium)

Screenshots go to the test's temporary folder, or to EMOLAB_SCREENSHOTS.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from html import unescape
from pathlib import Path

import nbformat
import pytest

from tests.mini import QUERIES, WEIGHTS
from tools.notebooks import is_student

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed; pip install playwright")
from playwright.sync_api import Page, expect, sync_playwright  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --no-proxy-server"
).split()
SECONDS = 1000  # Playwright counts in milliseconds
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
# With widgets to move, and with checks of what a student writes. The others are opened as they were committed, since
# `make check-notebooks` runs them; EMOLAB_ALL_NOTEBOOKS=1 runs them here, too.
ALIVE = [p for p in NOTEBOOKS if p.name.startswith("00") or is_student(p) or os.environ.get("EMOLAB_ALL_NOTEBOOKS")]
PROJECTOR = {"width": 1024, "height": 768}
PANEL = f"""import emolab
from emolab.widgets import SteeringPanel, head_view, token_view

model = emolab.load_model({str(WEIGHTS)!r})
queries = emolab.load_queries({str(QUERIES)!r}, split="train").groupby("situation").head(1).head(24)
responses = emolab.collect_responses(model, queries)
vectors = emolab.extract_vectors(model, responses)
panel = SteeringPanel(model, vectors, setting=emolab.Setting(site="attn"), doses={{"joy": 1.25}})
panel"""
CHAT = """import emolab
from dataclasses import replace
from emolab.widgets import Chat

model, vectors = emolab.load_model("smollm2"), emolab.load_vectors("smollm2")
setting = emolab.Setting(site="attn", layers="late", unit="breaking")
chat = Chat(model, vectors, setting=setting, doses={"joy": 1.0}, max_new_tokens=30)
chat"""
PAD = """axes = replace(vectors.select(["joy", "fear"]), emotions=("valence", "arousal"))
pad = Chat(model, axes, max_new_tokens=8)
pad"""
TOKENS = """token_view(model, panel.texts["steered"], vectors, site="attn", emotion="joy")"""
HEADS = """from emolab.models.sites import output_weights
from emolab.heads.head_vectors import head_maps
means = emolab.response_means(model, responses)
head_view(head_maps(vectors, means, W_O=output_weights(model), n_splits=4), emotion="joy")"""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory, browser):
    """(address with token, folder of its notebooks, folder of its settings) of a JupyterLab that is ours alone."""
    home = tmp_path_factory.mktemp("lab")
    work = home / "work"
    work.mkdir()
    panel = [nbformat.v4.new_code_cell(source) for source in (PANEL, TOKENS, HEADS)]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=panel, metadata=kernel), work / "panel.ipynb")
    chat = [nbformat.v4.new_code_cell(source) for source in (CHAT, PAD, "print(repr(pad.dials.steering))")]
    nbformat.write(nbformat.v4.new_notebook(cells=chat, metadata=kernel), work / "chat.ipynb")
    for path in (*NOTEBOOKS, ROOT / "notebooks" / "classroom_checks.py"):
        shutil.copy(path, work)
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
               "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
               "IPYTHONDIR": "ipython", "EMOLAB_FIGURES": "figures"}  # fmt: skip
    env = os.environ | {name: str(home / folder) for name, folder in folders.items()}
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")])), "HF_HUB_OFFLINE": "1"}
    setting(home, "apputils-extension/notification", {"fetchNews": "false", "checkForUpdates": False})
    # Else cells far off the screen are not drawn, and a person would have to scroll to them first.
    setting(home, "notebook-extension/tracker", {"windowingMode": "none", "autoStartDefaultKernel": True})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--IdentityProvider.token={token}",
               "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
               f"--ServerApp.root_dir={work}", "--LabApp.news_url=", "--ServerApp.log_level=WARN"]  # fmt: skip
    log = home / "lab.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, cwd=home)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", server, log)
        yield f"http://127.0.0.1:{port}", token, home
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def setting(home: Path, name: str, values: dict) -> None:
    path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def wait_for(url: str, server: subprocess.Popen, log: Path, seconds: int = 60) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(4 * seconds):
        assert server.poll() is None, f"JupyterLab ended at once:\n{log.read_text()[-2000:]}"
        try:
            with opener.open(url, timeout=5):
                return
        except OSError:
            time.sleep(0.25)
    raise AssertionError(f"JupyterLab did not answer within {seconds} s:\n{log.read_text()[-2000:]}")


@pytest.fixture
def folder(tmp_path):
    """Where screenshots go."""
    path = Path(os.environ.get("EMOLAB_SCREENSHOTS", tmp_path))
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def pages(browser, lab, folder):
    """Opens notebooks in tabs of their own, and finds out in the end whether the console complained."""
    opened, said = [], []

    def visit(name: str, theme: str = "JupyterLab Light") -> Page:
        address, token, home = lab
        setting(home, "apputils-extension/themes", {"theme": theme})
        copy = f"{len(opened)}{secrets.token_hex(3)}.ipynb"  # a kernel of its own
        nb = nbformat.read(home / "work" / name, as_version=4)
        for cell in nb.cells:  # a number then says that the cell was run, here
            cell |= {"outputs": [], "execution_count": None} if cell.cell_type == "code" else {}
        nbformat.write(nb, home / "work" / copy)
        page = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
        page.set_default_timeout(60 * SECONDS)
        page.on("console", lambda m: said.append(f"{m.text} {m.location.get('url')}") if m.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{address}/lab/workspaces/{copy[:-6]}/tree/{copy}?token={token}")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        opened.append(page)
        return page

    yield visit
    complaints = list(said)
    for page in opened:  # as the test left it, for those who wonder why it failed
        page.screenshot(path=folder / "last.png")
        end_kernels(page, *lab[:2])
        page.context.close()
    assert not complaints, complaints[:5]


def end_kernels(page: Page, address: str, token: str) -> None:
    """A kernel holds a gigabyte, and would go on with what the page asked for."""
    who = {"Authorization": f"token {token}"}
    for session in page.request.get(f"{address}/api/sessions", headers=who).json():
        page.request.delete(f"{address}/api/sessions/{session['id']}", headers=who)


def run_all(page: Page, seconds: int) -> list[str]:
    """Kernel ready, Run > Run All Cells, and every cell with its number. Returns errors and warnings."""
    expect(page.locator("#jp-main-statusbar").get_by_text("| Idle")).to_be_visible(timeout=60 * SECONDS)
    cells = page.locator(".jp-CodeCell .jp-InputArea-prompt")
    for _ in range(3):  # a kernel that has just come up may lose what it is asked
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try:
            expect(cells.first).to_have_text(re.compile(r"\[\d+\]"), timeout=120 * SECONDS)
            break
        except AssertionError:
            continue
    page.wait_for_function(
        """() => { const p = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputArea-prompt')];
                   return p.length && p.every((x) => /\\[\\d+\\]/.test(x.textContent)); }""",
        timeout=seconds * SECONDS,
    )
    assert cells.count()
    # JupyterLab draws an error as it draws what went to stderr, which may hold nothing either.
    return page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]').all_inner_texts()


def wait_until(done, seconds: int = 30) -> None:
    for _ in range(10 * seconds):
        if done():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


def shoot(page: Page, folder: Path, name: str, locator=None) -> None:
    (locator or page).screenshot(path=folder / f"{name}.png")


def texts_of(page: Page) -> list[str]:
    """unsteered, steered, random of the last turn, as panel and chat show them, alive or saved."""
    turns = page.locator(".emolab-turn:visible")
    return turns.last.locator(".emolab-answer").all_inner_texts() if turns.count() else []


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_widgets_do_what_a_person_asks(pages, theme, folder):
    page = pages("panel.ipynb", f"JupyterLab {theme}")
    assert run_all(page, 240) == []
    slider = page.locator(".widget-slider", has_text="fear").get_by_role("slider")
    slider.wait_for()
    before = texts_of(page)
    assert len(before) == 3 and before[0] != before[1]

    slider.scroll_into_view_if_needed()
    box = page.locator(".widget-slider", has_text="fear").locator(".noUi-target").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2, steps=12)
    page.mouse.up()
    page.get_by_role("button", name="all to 0").wait_for()
    wait_until(lambda: texts_of(page)[1] != before[1])
    expect(page.get_by_text("writing", exact=False)).to_have_count(0)
    after = texts_of(page)
    assert after[0] == before[0] and after[1] != before[1]
    shoot(page, folder, f"panel_{theme.lower()}", page.locator(".jp-CodeCell").nth(0).locator(".jp-OutputArea"))

    prompt = page.get_by_label("prompt")
    prompt.fill("")
    prompt.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("the prompt is empty")
    prompt.fill("Say a few words about the <b>library</b>.")
    prompt.press("Enter")
    expect(page.get_by_role("alert")).to_have_count(0)
    wait_until(lambda: texts_of(page)[0] != before[0])

    tokens = page.locator(".emolab-tokens")
    layer = tokens.get_by_role("slider")
    number = tokens.locator("label output")
    shades = "els => els.map(e => e.style.backgroundColor).join()"
    first, colours = number.inner_text(), tokens.locator(".emolab-text > span").evaluate_all(shades)
    layer.focus()
    page.keyboard.press("ArrowRight")
    expect(number).not_to_have_text(first)
    assert tokens.locator(".emolab-text > span").evaluate_all(shades) != colours
    tokens.locator(".emolab-text > span").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    expect(number).to_have_text(first)
    third = tokens.locator(".emolab-text > span").nth(2)
    expect(third).to_be_focused()
    assert third.get_attribute("title") in tokens.locator("output[aria-live]").inner_text()
    shoot(page, folder, f"tokens_{theme.lower()}", page.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea"))

    heads = page.locator(".emolab-heads")
    numbers = heads.locator(".emolab-details").inner_text()
    heads.locator("[role=gridcell]").first.click()  # layer 0, the highest head
    expect(heads.locator(".emolab-head")).to_have_text("layer 0, head 5")
    assert heads.locator(".emolab-details").inner_text() != numbers
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect(heads.locator(".emolab-head")).to_have_text("layer 1, head 4")
    heads.get_by_label("emotion").select_option("sadness")
    shoot(page, folder, f"heads_{theme.lower()}", page.locator(".jp-CodeCell").nth(2).locator(".jp-OutputArea"))
    assert page.locator(".jp-Notebook .jp-CodeCell").count() == 3, "the keys were shortcuts of the notebook, too"
    shoot(page, folder, f"lab_{theme.lower()}")


def test_a_saved_panel_keeps_its_last_texts(pages, browser, lab, folder):
    """With its kernel gone JupyterLab shows an error in place of the controls, and the texts below it."""
    address, token, home = lab
    page = pages("panel.ipynb")
    assert run_all(page, 240) == []
    slider = page.locator(".widget-slider", has_text="fear").get_by_role("slider")
    before = texts_of(page)
    slider.focus()
    for _ in range(12):
        page.keyboard.press("PageUp")
    wait_until(lambda: texts_of(page)[1] != before[1])
    expect(page.get_by_text("writing", exact=False)).to_have_count(0)
    last = texts_of(page)
    assert last[0] == before[0]
    saved = home / "work" / page.url.split("?")[0].rsplit("/", 1)[1]
    page.keyboard.press("Control+s")
    wait_until(lambda: last[1].strip() in words_of(saved))
    end_kernels(page, address, token)
    again = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
    again.goto(f"{address}/lab/workspaces/saved/tree/{saved.name}?token={token}")
    again.get_by_text("Error displaying widget").first.wait_for(timeout=60 * SECONDS)
    assert texts_of(again) == last
    assert again.get_by_text("unsteered", exact=True).first.is_visible()
    shoot(again, folder, "saved_panel")
    end_kernels(again, address, token)
    again.context.close()


def words_of(path: Path) -> str:
    """What the HTML of a saved notebook says, without the elements around each token."""
    outputs = [x for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" for x in c.outputs]
    pages = [x.data["text/html"] for x in outputs if "text/html" in x.get("data", {})]
    return unescape(re.sub("<[^>]*>", "", "".join(pages)))


def written(page: Page, turns: int) -> list[str]:
    """The texts, once so many turns are there and nothing is being written."""
    expect(page.locator("[role=log]").first.locator(".emolab-turn")).to_have_count(turns, timeout=60 * SECONDS)
    expect(page.get_by_role("button", name="stop").first).to_be_disabled(timeout=60 * SECONDS)
    return texts_of(page)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_a_conversation(pages, browser, lab, theme, folder):
    """Type, drag, stop, click, go on from a token, go back; then save, and read it without a kernel."""
    page = pages("chat.ipynb", f"JupyterLab {theme}")
    assert run_all(page, 240) == []
    prompt, log = page.get_by_label("prompt").first, page.locator("[role=log]").first
    prompt.fill("Tell me about the park.")
    prompt.press("Enter")
    first = written(page, 1)
    assert len(first) == 3 and all(first) and first[0] != first[1] and prompt.input_value() == ""
    assert page.locator(".emolab-turn").count() == 2 and page.locator(".emolab-turn:visible").count() == 1
    coloured = log.locator("[data-at][style*=background-color]").count()
    assert coloured > 5

    slider = page.locator(".widget-slider", has_text="fear").first
    box = slider.locator(".noUi-target").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2, steps=8)
    page.mouse.up()
    assert texts_of(page) == first, "a dial of a chat writes nothing by itself"
    prompt.fill("And the trees?")
    prompt.press("Enter")
    second = written(page, 2)
    assert len(second) == 3 and not set(first) & set(second)

    token = log.locator(".emolab-turn").nth(1).locator(".emolab-answer").nth(1).locator("[data-at]").nth(3)
    token.click()
    instead = page.get_by_label("instead").first
    expect(instead).to_be_visible()
    shoot(page, folder, f"chat_{theme.lower()}", page.locator(".jp-CodeCell").nth(0).locator(".jp-OutputArea"))
    token.focus()
    page.keyboard.press("ArrowRight")
    expect(
        log.locator(".emolab-turn").nth(1).locator(".emolab-answer").nth(1).locator("[data-at]").nth(4)
    ).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_text("(token 5)")).to_be_visible()
    instead.select_option(index=2)
    page.get_by_role("button", name="go on from here").first.click()
    wait_until(lambda: texts_of(page)[1] != second[1])
    forked = written(page, 2)
    assert forked[0] == second[0] and forked[1] != second[1]
    page.get_by_role("button", name="back").first.click()
    wait_until(lambda: texts_of(page) == second)

    prompt.fill("Tell me a long story about a <b>ship</b>.")
    prompt.press("Enter")
    expect(log.locator("b", has_text="<b>ship</b>")).to_have_count(1)
    expect(log.locator(".emolab-turn").nth(2).locator("[data-at]").nth(5)).to_be_visible()
    page.get_by_role("button", name="stop").first.click()
    written(page, 3)
    page.wait_for_timeout(SECONDS)  # a token that was being chosen still comes
    stopped = texts_of(page)
    assert any(stopped) and page.get_by_text("stopped", exact=True).count()

    pad = page.get_by_role("application").first
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 30, steps=5)
    page.mouse.up()
    expect(pad).to_have_attribute("aria-label", re.compile(r"valence → 1\.\d+, arousal ↑ 1\.\d+"))
    pad.press("ArrowLeft")
    shoot(page, folder, f"pad_{theme.lower()}", page.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea"))
    if theme == "Dark":  # a kernel that begins anew
        page.get_by_role("menuitem", name="Kernel", exact=True).click()
        page.get_by_role("menuitem", name=re.compile("Restart Kernel and Run All Cells")).click()
        page.locator(".jp-Dialog button.jp-mod-accept").click()
        expect(page.locator(".emolab-turn")).to_have_count(0, timeout=120 * SECONDS)
        prompt = page.get_by_label("prompt").first
        prompt.wait_for(timeout=120 * SECONDS)
        prompt.fill("Hello?")
        prompt.press("Enter")
        assert all(written(page, 1))
        return
    address, token_, home = lab
    saved = home / "work" / page.url.split("?")[0].rsplit("/", 1)[1]
    page.locator(".jp-CodeCell .jp-InputArea-prompt").last.click()
    page.keyboard.press("Control+s")
    wait_until(lambda: "emolab-copy" in saved.read_text() and "ship" in saved.read_text())
    end_kernels(page, address, token_)
    again = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
    again.goto(f"{address}/lab/workspaces/chat/tree/{saved.name}?token={token_}")
    again.get_by_text("Error displaying widget").first.wait_for(timeout=60 * SECONDS)
    assert again.locator(".emolab-turn:visible").count() == 3 and texts_of(again) == stopped
    shoot(again, folder, "saved_chat")
    end_kernels(again, address, token_)
    again.context.close()


@pytest.mark.parametrize("path", ALIVE, ids=lambda p: p.stem)
def test_a_notebook_runs(pages, path, folder):
    """Every cell, in JupyterLab; figures drawn, views alive, and on a projector nothing runs out of the page."""
    source = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    page = pages(path.name)
    errors = run_all(page, 900)
    if is_student(path):  # as handed out: each check says so, without a stack trace, and the rest goes on
        assert len(errors) == source.count("classroom_checks.check_") and not [e for e in errors if "Traceback" in e]
        assert all("nothing here yet" in e for e in errors), errors
    else:
        assert errors == []
    assert page.locator(".jp-RenderedImage img").count() >= source.count("save_figure(") > 0
    for kind in ("tokens", "heads"):
        views = source.count(f"widgets.{kind[:-1]}_view(")
        assert page.locator(f".emolab-{kind}[data-live]").count() == views == page.locator(f".emolab-{kind}").count()
    if "Chat(" in source:
        before = texts_of(page)
        prompt = page.get_by_label("prompt").first
        prompt.fill("Why?")
        prompt.press("Enter")
        assert not set(written(page, 2)) & set(before)
    shoot(page, folder, path.stem)
    fits_a_projector(page, path, folder)


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p not in ALIVE], ids=lambda p: p.stem)
def test_a_notebook_is_shown_as_committed(browser, lab, folder, path):
    """Not run: its figures and tables stand in the page, and on a projector nothing runs out of it."""
    address, token, home = lab
    setting(home, "apputils-extension/themes", {"theme": "JupyterLab Light"})
    page = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
    page.goto(f"{address}/lab/workspaces/{path.stem}/tree/{path.name}?token={token}")
    page.locator(".jp-RenderedImage img").first.wait_for()
    saved = sum("save_figure(" in cell.source for cell in nbformat.read(path, as_version=4).cells)
    assert page.locator(".jp-RenderedImage img").count() >= saved > 0
    fits_a_projector(page, path, folder)
    end_kernels(page, address, token)
    page.context.close()


def fits_a_projector(page: Page, path: Path, folder: Path) -> None:
    page.set_viewport_size(PROJECTOR)
    page.wait_for_timeout(500)
    wide = page.locator(".jp-OutputArea-output:not(:has(table.dataframe, table[id^=T_]))").evaluate_all(  # these scroll
        "els => els.filter((x) => x.scrollWidth > x.clientWidth + 1).map((x) => x.innerText.slice(0, 80))"
    )
    assert not wide, f"wider than a projector of 1024 pixels: {wide}"
    page.set_viewport_size({"width": 1024, "height": 9000})  # all of it, for those who look
    page.locator(".jp-Notebook .jp-Cell").first.scroll_into_view_if_needed()
    shoot(page, folder, f"{path.stem}_1024")


def test_views_stand_without_a_kernel(browser, lab, folder):
    """Executed elsewhere, opened here: JupyterLab does not trust it, runs no script, and still shows the views."""
    from tools.notebooks import run_notebook

    address, token, home = lab
    nb = run_notebook(home / "work" / "panel.ipynb")
    nbformat.write(nb, home / "work" / "static.ipynb")
    setting(home, "apputils-extension/themes", {"theme": "JupyterLab Light"})
    page = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
    page.goto(f"{address}/lab/workspaces/static/tree/static.ipynb?token={token}")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    expect(page.get_by_text("steered", exact=True).first).to_be_visible()
    assert page.locator(".emolab-text > span").count() > 10 and page.locator(".emolab-map td").count() == 36
    assert page.locator(".emolab-text > span").nth(3).get_attribute("title")
    assert page.locator(".emolab-tokens select").count() == 0, "scripts ran: the notebook is trusted"
    assert "rgba" in page.locator(".emolab-text > span").nth(3).get_attribute("style")
    shoot(page, folder, "static")
    page.context.close()
