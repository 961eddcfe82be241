"""Whether what a notebook shows now agrees with what is committed, here and on a processor that nobody here has.

>>> from tools.agreement import texts_differ
>>> texts_differ("Steered 0.8812, random 0.0800.", "Steered 0.8811, random 0.0800.", strict=True)   # the last digit
''
>>> texts_differ("On top: 0.61 [0.50, 0.72].", "On top: 0.66 [0.55, 0.77].", strict=False)          # the interval
''

Two rules. **strict**, where the kernels of this machine compute the bits that the committed files were made with:
words are equal, printed numbers differ by one unit of their last digit or 1e-4 of their size at most. Elsewhere a
greedy text may take another turn, and what is counted over texts moves with it. There it is enough to agree in the
**loose** rule: lines with an interval keep their words (so the verdict), and their number lies in the committed
interval; lines without one, texts among them, are not compared.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd

EXACT = "exact"  # the tag of a cell that computes from what is kept, vectors and texts, and is strict everywhere
TOLERANCE = 1e-4
UMAP_QUALITY = 0.05  # how far trustworthiness and the like of a UMAP may be off
DRAWN = 0.5  # points: how far a mark of a drawing may be off
SHADE = 3  # of 255: how far its colour may be off

_NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d[\d,]*)?\.?\d+(?:[eE][-+]?\d+)?")
_INTERVAL = re.compile(r"\[\s*([-−]?[\d.]+)\s*%?\s*,\s*([-−]?[\d.]+)\s*%?\s*\]")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
_STYLE = re.compile(r'style="[^"]*"')
_PICTURE = re.compile(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)")
_DRAWING_ID = re.compile(r"\b(?:image|[a-z]{1,2})[0-9a-f]{10}\b")  # matplotlib names parts by a hash of their numbers
_NO_SENTENCE = re.compile(r"data-emolab='[^']*'|<(script|style)\b.*?</\1>", re.DOTALL)  # what moves and dresses a view
_CODED = re.compile(r'"(steps|values)": ?"([A-Za-z0-9+/=]+)"')  # there: whole numbers, in base64
_CODE = {"steps": "<i2", "values": "i1"}


def processor() -> str:
    """This machine, as far as its results go: torch's version and vector unit, and a hash of some sums' bits."""
    import torch

    x = torch.linspace(-1, 1, 96 * 577).reshape(96, 577)
    y, heads = (x * 3).sin(), x[:, :64].reshape(1, 1, 96, 64)
    attention = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    sums = [
        x @ y.T, x.double() @ y.double().T, x[:1] @ y.T, attention, (x * 9).softmax(-1), torch.nn.functional.silu(x),
        torch.nn.functional.layer_norm(x, (577,)), torch.from_numpy(x.numpy() @ y.numpy().T),
        torch.from_numpy(np.linalg.svd(x.double().numpy(), compute_uv=False)), torch.from_numpy(np.exp(y.numpy())),
    ]  # fmt: skip
    found = hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in sums)).hexdigest()[:12]
    return f"torch {torch.__version__.split('+')[0]} {torch.backends.cpu.get_cpu_capability()} {found}"


def texts_differ(new: str, old: str, *, strict: bool) -> str:
    """What differs between two printed texts, as one line; "" where they agree."""
    if strict:
        return _coded_differ(new, old) or _words_or_numbers(_CODED.sub("", new), _CODED.sub("", old))
    bare = (_NO_SENTENCE.sub("", text) for text in (new, old))
    ours, theirs = ([line for line in text.splitlines() if _INTERVAL.search(line)] for text in bare)
    if len(ours) != len(theirs):
        return f"{len(ours)} lines with an interval, {len(theirs)} committed"
    return next(filter(None, map(_verdict, ours, theirs)), "")


def _coded_differ(new: str, old: str) -> str:
    """What differs between the coded numbers of two views: more than rounding, or than 1e-4 of the largest."""
    ours, theirs = (
        [np.frombuffer(base64.b64decode(code), _CODE[kind]).astype(int) for kind, code in _CODED.findall(text)]
        for text in (new, old)
    )
    if [len(numbers) for numbers in ours] != [len(numbers) for numbers in theirs]:
        return "the view holds more or fewer numbers than the committed one"
    pairs = list(zip(ours, theirs, strict=True))
    off = sum(int((abs(a - b) > 1 + TOLERANCE * abs(b).max(initial=0)).sum()) for a, b in pairs)
    return f"{off} numbers of the view differ" if off else ""


def _words_or_numbers(new: str, old: str) -> str:
    ours, theirs = (" ".join(_COLOUR.sub("#", text).split()) for text in (new, old))
    words = _NUMBER.split(ours), _NUMBER.split(theirs)
    for a, b in zip(*words):  # noqa: B905  the longer one differs in its last word
        if a != b:
            return f"{_around(a, b)!r}, committed {_around(b, a)!r}"
    numbers = _NUMBER.findall(ours), _NUMBER.findall(theirs)
    if len(numbers[0]) != len(numbers[1]):
        return f"{len(numbers[0])} numbers, {len(numbers[1])} committed"
    behind = (word.lstrip()[:1] for word in words[0][1:])
    found = zip(*numbers, behind, strict=True)
    return "; ".join([f"{a}, committed {b}" for a, b, unit in found if not _near(a, b, share=unit == "%")][:5])


def _around(text: str, other: str) -> str:
    """The part of a text where it leaves the other."""
    at = next((i for i, (a, b) in enumerate(zip(text, other)) if a != b), min(len(text), len(other)))  # noqa: B905
    return text[max(0, at - 30) : at + 30].strip()


def _near(a: str, b: str, *, share: bool = False) -> bool:
    """Whether two printed numbers are a unit of their last digit apart at most; whole numbers are counts or shares."""
    if a == b:
        return True
    step = max(_unit(a), _unit(b))
    distance = abs(_value(a) - _value(b))
    return (share or step < 1) and distance <= 1.01 * step + TOLERANCE * max(1, abs(_value(b)))


def _value(number: str) -> float:
    return float(number.replace("−", "-").replace(",", ""))


def _unit(number: str) -> float:
    """What one unit of a printed number's last digit is worth."""
    digits, _, power = number.lower().partition("e")
    return 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))


def _verdict(new: str, old: str) -> str:
    """What differs between two lines with intervals, beyond the intervals: words, or a number outside its interval."""
    ours, theirs = (" ".join(_NUMBER.sub("0", line).split()) for line in (new, old))
    if ours != theirs:
        return f"the verdict is {_around(ours, theirs)!r}, committed {_around(theirs, ours)!r}"
    for a, b in zip(_INTERVAL.finditer(new), _INTERVAL.finditer(old), strict=True):
        before = _NUMBER.findall(new[: a.start()])
        rounding = 0.501 * max(_unit(b[1]), _unit(b[2]))
        if before and not _value(b[1]) - rounding <= _value(before[-1]) <= _value(b[2]) + rounding:
            return f"{before[-1]} is outside the committed interval {b[0]}"
    return ""


def notebooks_differ(new: nbformat.NotebookNode, old: nbformat.NotebookNode, *, strict: bool) -> list[str]:
    """Differences of an executed notebook from the committed one, one line for each cell; pictures are left out.

    A picture is `save_figure`'s, whose numbers `figures_differ` compares.
    """
    ours, theirs = ([(c.cell_type, c.source, c.metadata.get("tags") or []) for c in nb.cells] for nb in (new, old))
    if ours != theirs:
        return ["its cells are others than those that are committed"]
    found = []
    for number, (cell, committed) in enumerate(zip(new.cells, old.cells, strict=True), 1):
        exact = strict or EXACT in cell.metadata.get("tags", [])
        if cell.cell_type == "code" and (what := _outputs_differ(cell.outputs, committed.outputs, strict=exact)):
            found.append(f"cell {number}: {what}")
    return found


def _outputs_differ(new: list[Any], old: list[Any], *, strict: bool) -> str:
    ours, theirs = (list(_printed(outputs)) for outputs in (new, old))
    kinds = [[kind for kind, _ in found] for found in (ours, theirs)]
    if kinds[0] != kinds[1]:
        return f"it shows {', '.join(kinds[0]) or 'nothing'}, committed {', '.join(kinds[1]) or 'nothing'}"
    pairs = zip(ours, theirs, strict=True)
    return next((what for (_, a), (_, b) in pairs if (what := texts_differ(a, b, strict=strict))), "")


def _printed(outputs: list[Any]) -> Iterator[tuple[str, str]]:
    """The kind and text of all that a cell shows; a picture's text is what is told about it."""
    for out in outputs:
        if out.output_type == "stream":
            yield out.name, out.text
        elif out.output_type == "error":
            yield "error", f"{out.ename}: {out.evalue}"
        else:
            for kind, content in sorted(out.data.items()):
                shown = out.metadata.get(kind, "") if kind.startswith("image/") else content
                yield kind, shown if isinstance(shown, str) else json.dumps(shown, sort_keys=True)


def figures_differ(new: str | Path, old: str | Path, *, strict: bool) -> dict[str, str]:
    """{name: what differs} of the figures in one folder that do not agree with those of another, committed one."""
    from emolab.plot.save import read_manifest

    ours, theirs = read_manifest(new), read_manifest(old)
    found = {name: _figure_differs(name, Path(new), Path(old), ours, theirs, strict=strict) for name in ours}
    return {name: what for name, what in found.items() if what}


def _figure_differs(name: str, new: Path, old: Path, ours: dict, theirs: dict, *, strict: bool) -> str:
    if name not in theirs:
        return "not committed; run make figures"
    entry, committed = ours[name], theirs[name]
    if missing := [file for file in committed["files"].values() if not (old / file).is_file()]:
        return f"{missing[0]} is missing; run make figures"
    table, before = pd.read_csv(new / entry["files"]["csv"]), pd.read_csv(old / committed["files"]["csv"])
    if what := tables_differ(table, before, strict=strict):
        return f"numbers differ: {what}"
    for word in ("caption", "alt"):
        if what := texts_differ(entry[word], committed[word], strict=strict):
            return f"{word}: {what}"
    if _far(table, before):  # they agree as a UMAP does, or as intervals do: the drawing is another
        return ""
    settings = [str([e[key] for key in ("files", "notebook", "function", "model", "n", "seed", "params")])
                for e in (entry, committed)]  # fmt: skip
    if what := texts_differ(settings[0], settings[1], strict=True):
        return f"made with other settings: {what}"
    drawing, drawn = new / entry["files"]["svg"], old / committed["files"]["svg"]
    return drawings_differ(drawing.read_text(encoding="utf-8"), drawn.read_text(encoding="utf-8"))


def tables_differ(new: pd.DataFrame, old: pd.DataFrame, *, strict: bool) -> str:
    """What differs between the numbers of two figures; "" where they agree.

    UMAP is chaotic: on another processor the rounding of last digits ends in another map. Its rows (`method`) have to
    be as good as the committed ones, trustworthiness and the like to 0.05; their coordinates are left out. In the loose
    rule a number with an interval (columns `lo` and `hi` or `low` and `high`, and the number left of them) lies in the
    committed one, in 95 % of the rows that both have (of the same dose, too).
    """
    (repeated, chaotic), (old_repeated, old_chaotic) = _chaotic_apart(new), _chaotic_apart(old)
    what = _far(repeated, old_repeated) or _far(chaotic, old_chaotic, rtol=0, atol=UMAP_QUALITY)
    if strict or not what:
        return what
    return _outside(new, old)


def _far(new: pd.DataFrame, old: pd.DataFrame, rtol: float = TOLERANCE, atol: float = TOLERANCE) -> str:
    try:
        pd.testing.assert_frame_equal(new, old, check_dtype=False, rtol=rtol, atol=atol)
    except AssertionError as error:
        return " ".join(str(error).split())[:200]
    return ""


def _chaotic_apart(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows that any machine repeats, and those of UMAP without their coordinates."""
    if not {"method", "x", "y"} <= set(table):
        return table, table.head(0)
    chaotic = table["method"] == "umap"
    return table[~chaotic], table[chaotic].drop(columns=["x", "y"])


def _outside(new: pd.DataFrame, old: pd.DataFrame) -> str:
    """The loose rule."""
    if list(new) != list(old):
        return f"columns {list(new)}, committed {list(old)}"
    bounds = next(((low, high) for low, high in (("lo", "hi"), ("low", "high")) if {low, high} <= set(old)), None)
    if bounds is None:
        return ""
    value = list(old)[list(old).index(bounds[0]) - 1]
    before = list(old)[: list(old).index(value)]  # such as a dose: a key, too, where both tables have the same ones
    keys = [
        column
        for column in old
        if not pd.api.types.is_float_dtype(old[column])
        or (column in before and set(old[column].dropna()) == set(new[column].dropna()))
    ]
    both = old.merge(new, on=keys, suffixes=("", "_new")) if keys else old.join(new.add_suffix("_new"))
    if len(both) < len(old) / 2:
        return f"{len(both)} of {len(old)} committed rows are found again"
    inside = both[f"{value}_new"].between(both[bounds[0]] - TOLERANCE, both[bounds[1]] + TOLERANCE)
    inside |= both[f"{value}_new"].isna() | both[list(bounds)].isna().any(axis=1)
    off = both[~inside]
    if len(off) <= 0.05 * len(both):
        return ""
    return f"{value} is outside the committed interval in {len(off)} of {len(both)} rows, first {off.iloc[0].to_dict()}"


def drawings_differ(new: str, old: str) -> str:
    """What differs between two SVGs that save_figure wrote, beyond half a point of place and a shade of colour."""
    ours, theirs = _in_order(new), _in_order(old)
    styles = [[_COLOUR.sub("#", style) for style in _STYLE.findall(text)] for text in (ours, theirs)]
    if styles[0] != styles[1]:
        return "the drawing has other styles"
    pictures = [_PICTURE.findall(text) for text in (ours, theirs)]
    colours = [[int(c[i : i + 2], 16) for c in _COLOUR.findall(text) for i in (1, 3, 5)] for text in (ours, theirs)]
    bare = [_STYLE.sub("style", _PICTURE.sub("picture", text)) for text in (ours, theirs)]
    words = [_NUMBER.split(text) for text in bare]
    if words[0] != words[1] or any(len(found[0]) != len(found[1]) for found in (pictures, colours)):
        return "the drawing has other marks"
    numbers = [[_value(number) for number in _NUMBER.findall(text)] for text in bare]
    if any(abs(a - b) > DRAWN for a, b in zip(*numbers, strict=True)):
        return "the drawing has marks elsewhere"
    if any(abs(a - b) > SHADE for a, b in zip(*colours, strict=True)) or any(
        not _same_picture(a, b) for a, b in zip(*pictures, strict=True)
    ):
        return "the drawing has other colours"
    return ""


def _in_order(svg: str) -> str:
    """The names of marks by the order in which they occur, since they depend on last digits."""
    names: dict[str, str] = {}
    return _DRAWING_ID.sub(lambda found: names.setdefault(found[0], f"mark{len(names)}"), svg)


def _same_picture(a: str, b: str) -> bool:
    from PIL import Image

    ours, theirs = (np.asarray(Image.open(io.BytesIO(base64.b64decode(x))).convert("RGBA"), int) for x in (a, b))
    return ours.shape == theirs.shape and bool(np.abs(ours - theirs).max(initial=0) <= SHADE)
