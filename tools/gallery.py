"""The gallery: figures/README.md, every figure of the manifest with its words and its files, by notebook."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from emolab.plot.save import _write, figures_directory, read_manifest

INTRODUCTION = """\
# Figures

Every figure here was drawn and written by a notebook; `make figures` draws them all again, and
[manifest.json](manifest.json) holds what made each one: function, model, number of queries, seed, versions. The CSV
beside a figure holds its numbers. The line under a figure names its model.
"""


def write_gallery(directory: str | Path | None = None) -> Path:
    """Write README.md into a figures folder, from its manifest alone; the same bytes from the same manifest.

    >>> write_gallery("figures")      # doctest: +SKIP
    PosixPath('figures/README.md')
    """
    path = figures_directory(directory) / "README.md"
    _write(path, gallery(read_manifest(directory)).encode())
    return path


def gallery_problems(directory: str | Path | None = None) -> list[str]:
    """One line where the gallery is not what `write_gallery` would write; [] when it is.

    >>> gallery_problems("figures")      # doctest: +SKIP
    []
    """
    path = figures_directory(directory) / "README.md"
    held = path.read_text(encoding="utf-8") if path.is_file() else None
    fresh = held == gallery(read_manifest(directory))
    return [] if fresh else [f"{path.name} is {'stale' if held else 'missing'}; run make figures"]


def gallery(manifest: Mapping[str, Mapping[str, Any]]) -> str:
    """The gallery of a manifest as Markdown: one section a notebook, figures by name.

    >>> print(gallery({}).splitlines()[0])
    # Figures
    """
    notebooks: dict[str, list[str]] = {}
    for name in sorted(manifest):
        notebooks.setdefault(manifest[name]["notebook"] or "", []).append(name)
    parts = [INTRODUCTION]
    for notebook in sorted(notebooks):
        words = notebook.removesuffix(".ipynb").replace("_", " ")
        title = f"[{_line(words)}](../notebooks/{quote(notebook)})" if notebook else "Not drawn by a notebook"
        parts.append(f"## {title}\n")
        parts += [_figure(name, manifest[name]) for name in notebooks[notebook]]
    return "\n".join(parts)


def _figure(name: str, entry: Mapping[str, Any]) -> str:
    files = entry["files"]
    drawn = f" · `emolab.plot.{' '.join(entry['function'].replace('`', '').split())}`" if entry["function"] else ""
    links = " · ".join(f"[{kind.upper()}]({quote(files[kind])})" for kind in ("svg", "pdf", "csv") if kind in files)
    picture = f"![{_line(entry['alt'])}]({quote(files['png'])})"
    return f"### {name}\n\n{picture}\n\n{_line(entry['caption'])}\n\n{links}{drawn}\n"


def _line(text: str) -> str:
    """Words as words: on one line, and nothing in them that Markdown would take for a mark."""
    text = " ".join(text.split())
    for mark in "\\[]*_`<":
        text = text.replace(mark, "\\" + mark)
    return text
