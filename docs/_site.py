"""What building the site needs beyond mkdocs: notebooks and figures go along, docstrings' examples become code."""

from __future__ import annotations

import re
from pathlib import Path

import griffe
import nbformat
from mkdocs.structure.files import File
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).parent.parent
KEPT = (".png", ".svg", ".pdf", ".csv", ".json", ".md")


def on_files(files, config):
    """Notebooks as HTML, as they were committed (nothing is run), figures as they are, and the colours of code."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="")
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        nb = nbformat.read(path, as_version=4)  # badges are left out: pictures from outside
        nb.cells[0].source = re.sub(r"^\[!\[.*\n\n?", "", nb.cells[0].source, flags=re.M)
        page, _ = exporter.from_notebook_node(nb, {"metadata": {"name": path.stem}})
        files.append(File.generated(config, f"notebooks/{path.stem}.html", content=page))
    for path in sorted(p for p in (ROOT / "figures").rglob("*") if p.suffix in KEPT):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    light, dark = HtmlFormatter(style="default"), HtmlFormatter(style="github-dark")
    colours = light.get_style_defs(".highlight") + "\n" + dark.get_style_defs("[data-bs-theme=dark] .highlight")
    files.append(File.generated(config, "code.css", content=colours))
    return files


def on_page_markdown(markdown, page, config, files):
    """../notebooks/x.ipynb, which a code host shows, becomes notebooks/x.html; ../figures/... lies in the site, too."""
    up = "../" if page.file.src_uri.startswith("figures/") else ""
    markdown = re.sub(r"\]\(\.\./notebooks/([\w-]+)\.ipynb\)", rf"]({up}notebooks/\1.html)", markdown)
    return markdown.replace("](../figures/", "](figures/")


class Examples(griffe.Extension):
    """Docstrings are plain text: their examples become code, and what is aligned under names becomes a list."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = "\n\n".join(marked(block) for block in obj.docstring.value.split("\n\n"))


def marked(block: str) -> str:
    if block.startswith(">>> "):
        return f"```pycon\n{block}\n```"
    lines = block.splitlines()
    named = [re.match(r"`?(\w+)`? {2,}(?=\S)", line) for line in lines]
    if named[0] and all(m or line.startswith("     ") for m, line in zip(named, lines, strict=True)):
        texts = (f"- `{m[1]}`: {x[m.end() :]}" if m else f"  {x.strip()}" for m, x in zip(named, lines, strict=True))
        return "\n".join(texts)
    return block
