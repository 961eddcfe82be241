"""`save_figure`, the only writer of figures/: pictures, numbers and provenance, the same bytes from the same input."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib as mpl
import pandas as pd
from filelock import AcquireReturnProxy
from matplotlib.figure import Figure

from emolab.base.errors import EmolabError, FileError, ResourceError, need_table, shown
from emolab.base.folders import locked
from emolab.base.storage import atomic, for_json, package_versions, read_json, user_path, write_json
from emolab.base.tables import about
from emolab.plot.panels import provenance
from emolab.plot.style import FIXED

_NAME = "[a-z0-9][a-z0-9_-]*"
DPI = 200  # of the file
SHOWN_DPI = 110  # of the copy that a notebook carries, which must stay under 1 MB with all its figures


def save_figure(
    fig: Figure,
    name: str,
    *,
    caption: str | None = None,
    alt: str | None = None,
    data: pd.DataFrame | None = None,
    notebook: str | None = None,
    directory: str | Path | None = None,
):
    """Write a figure as <name>.svg, .pdf, .png (200 dpi) and data/<name>.csv, and record it in manifest.json.

    >>> save_figure(plot.norms(vectors), "norms")                                              # doctest: +SKIP
    <IPython.core.display.Image object>

    caption: what is shown; model, n, seed and the rest of the footer are added to it. alt: the finding, for those who
    cannot see the figure. emolab's own figures have both, and their numbers; others need them, and may say in
    `data.attrs["about"]` who made them (`emolab.base.tables.noted`). notebook: found by itself. directory: default the
    environment variable EMOLAB_FIGURES, else figures/ of the repository.
    Returns a smaller copy of the PNG for display, with the alt text.
    Raises EmolabError where caption, alt or numbers are missing.
    """
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        raise EmolabError(f"figure name {name!r}: use small letters, digits, _ and -, without a suffix")
    if not isinstance(fig, Figure):
        raise EmolabError(f"the figure {name!r} is a {type(fig).__name__}; expected a matplotlib Figure")
    info = dict(getattr(fig, "emolab_info", {}))
    caption, alt = (info.get("title") if text is None else text for text in (caption, alt))
    for word, text in (("caption", caption), ("alt", alt)):
        if not isinstance(text, str) or not text.strip():
            raise EmolabError(f"figure {name!r} has no {word}; say what it shows and, in alt, what one sees in it")
    data = getattr(fig, "emolab_data", None) if data is None else data
    if data is None:
        raise EmolabError(f"figure {name!r} has no numbers; pass data=, the DataFrame that it was drawn from")
    need_table(data, (), "the numbers that the figure was drawn from")
    info = info or about(data)
    caption, alt, origin = str(caption).strip(), str(alt).strip(), provenance(info)
    csv = data.to_csv(index=False, float_format="%.7g", lineterminator="\n").encode()
    pictures, small = _render(fig, name, alt)
    files = {kind: f"{name}.{kind}" for kind in pictures} | {"csv": f"data/{name}.csv"}
    folder = figures_directory(directory)
    for kind, content in {**pictures, "csv": csv}.items():
        _write(folder / files[kind], content)
    entry = {
        "files": files,
        "csv_sha256": hashlib.sha256(csv).hexdigest(),
        "caption": f"{caption} ({origin})" if origin else caption,
        "alt": alt,
        "notebook": notebook or _notebook(),
        **{key: info.get(key) for key in ("function", "model", "n", "seed")},
        "params": info.get("params") or {},
        "versions": package_versions("transformer-lens", "torch", "matplotlib"),
    }
    _record(folder, {name: entry})

    from IPython.display import Image

    return Image(data=small, format="png", width=round(96 * fig.get_figwidth()), alt=alt)


def adopt_figures(names: Iterable[str], source: str | Path, directory: str | Path | None = None) -> None:
    """Take figures over from another figures folder: their files, and what its manifest says of them."""
    there, folder = read_manifest(source), figures_directory(directory)
    entries = {name: there[name] for name in names}
    for entry in entries.values():
        for file in entry["files"].values():
            _write(folder / file, (user_path(source) / file).read_bytes())
    if entries:
        _record(folder, entries)


def _record(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    with _alone(folder):
        manifest = {**read_manifest(folder), **entries}
        write_json(folder / "manifest.json", for_json(dict(sorted(manifest.items()))))


def read_manifest(directory: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """The manifest of a figures folder, {figure name: entry}; empty where there is none."""
    folder = figures_directory(directory)
    path = folder / "manifest.json"
    if not path.exists():
        return {}
    manifest = read_json(path, "draw the figures again")
    wrong = [manifest]
    if isinstance(manifest, dict):
        wrong = [entry for entry in manifest.items() if not _sound(folder, *entry)]
    if wrong:
        raise FileError(
            f"{path} holds {shown(wrong[0])}, no entry of save_figure with files in that folder; draw the figures again"
        )
    return manifest


def _sound(folder: Path, name: str, entry: Any) -> bool:
    """Whether an entry has what readers take from it; a manifest may come from anybody."""
    texts = {"caption": str, "alt": str, "csv_sha256": str, "notebook": str | None, "function": str | None}
    if not re.fullmatch(_NAME, name) or not isinstance(entry, dict) or not isinstance(entry.get("files"), dict):
        return False
    files = [entry["files"].get(kind) for kind in ("svg", "png", "csv")]
    inside = all(isinstance(f, str) and "\0" not in f for f in files) and all(
        (folder / f).resolve().is_relative_to(folder.resolve()) for f in files
    )
    return inside and all(isinstance(entry.get(key, 0), kind) for key, kind in texts.items())


def check_figures(directory: str | Path | None = None) -> list[str]:
    """What is wrong with a figures folder: files missing, changed or unknown to its manifest. [] when all is well.

    >>> check_figures("figures")      # doctest: +SKIP
    []
    """
    folder = figures_directory(directory)
    if not folder.is_dir():
        return [f"there is no folder {folder}"]
    manifest = read_manifest(folder)
    faults, known = [], {"manifest.json", "README.md"}
    for name, entry in manifest.items():
        known |= set(entry["files"].values())
        faults += [f"{name}: {f} is missing" for f in entry["files"].values() if not (folder / f).is_file()]
        csv = folder / entry["files"]["csv"]
        if csv.is_file() and hashlib.sha256(csv.read_bytes()).hexdigest() != entry["csv_sha256"]:
            faults.append(f"{name}: {entry['files']['csv']} is not the file that was recorded")
        faults += [f"{name}: no {word}" for word in ("caption", "alt") if not entry[word].strip()]
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return faults + [f"{f} is not in the manifest" for f in sorted(files - known) if not Path(f).name.startswith(".")]


def figures_directory(directory: str | Path | None = None) -> Path:
    """Where figures go: what is given, else $EMOLAB_FIGURES, else figures/ here, or beside notebooks/ when in there."""
    if directory is not None:
        return user_path(directory)
    if os.environ.get("EMOLAB_FIGURES"):
        return user_path(os.environ["EMOLAB_FIGURES"])
    here = Path.cwd()
    return here.parent / "figures" if here.name == "notebooks" else here / "figures"


def _render(fig: Figure, name: str, alt: str) -> tuple[dict[str, bytes], bytes]:
    """{"svg", "pdf", "png": bytes}, the same from the same figure, and the smaller PNG for a notebook."""
    png, pdf, svg = io.BytesIO(), io.BytesIO(), io.StringIO()
    with mpl.rc_context(FIXED):
        fig.savefig(png, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
        dates = {"CreationDate": None, "Creator": "emolab", "Producer": None, "Title": name}
        fig.savefig(pdf, format="pdf", facecolor="white", metadata=dates)
        fig.savefig(svg, format="svg", facecolor="white", metadata={"Date": None, "Creator": "emolab", "Title": name})
    text = "\n".join(line.rstrip() for line in svg.getvalue().splitlines()) + "\n"
    title = f"<title>{escape(name)}</title>"
    text = text.replace(title, f"{title}\n <desc>{escape(alt)}</desc>", 1)
    text = text.replace("<svg ", '<svg role="img" ', 1)
    return {"svg": text.encode(), "pdf": pdf.getvalue(), "png": png.getvalue()}, _small(png)


def _small(png: io.BytesIO) -> bytes:
    """The same picture in fewer pixels and 128 colours, a sixth of the size: a notebook holds many."""
    from PIL import Image

    small, whole = io.BytesIO(), Image.open(png).convert("RGB")
    resized = whole.resize([round(side * SHOWN_DPI / DPI) for side in whole.size], Image.Resampling.LANCZOS)
    resized.quantize(128, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def _write(path: Path, content: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def _alone(folder: Path) -> AcquireReturnProxy:
    """Held while the manifest changes, since notebooks run side by side. It lies elsewhere: figures/ is committed."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    name = hashlib.sha256(f"{user} {folder.resolve()}".encode()).hexdigest()[:16]
    try:
        return locked(Path(tempfile.gettempdir(), f"emolab-figures-{name}.lock"))
    except OSError as error:
        raise ResourceError(f"no temporary folder that can be written ({error}); set TMPDIR to one") from error


def _notebook() -> str | None:
    """The notebook that is running: told by tools.notebooks, or by a Jupyter server; None in a plain script."""
    name = os.environ.get("EMOLAB_NOTEBOOK") or os.environ.get("JPY_SESSION_NAME", "")
    return Path(name).name if name.endswith(".ipynb") else None
