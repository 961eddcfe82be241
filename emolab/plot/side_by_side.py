"""A table of texts side by side, by how they came about: words of emotion marked, and what judges read in each."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex, to_rgb

from emolab.base.errors import EmolabError, need_numbers, need_table, shown
from emolab.base.labels import CONTROL_NAMES, NEUTRAL, order, styles
from emolab.experiments.headline import is_unsteered, one_setting
from emolab.judges.feeling_words import emotion_spans
from emolab.judges.judges import UNREAD
from emolab.judges.words import is_loop, is_refusal
from emolab.plot.style import CONTROLS, GREY
from emolab.steering.settings import parse_mixture

UNSTEERED, INSTRUCTED = CONTROLS["unsteered"]["label"], "instructed"
STEERED = {"none": "vector", **CONTROL_NAMES}
_MIDDLE = 0.19  # the luminance that stands out alike (4.3 to 1) from a white page and from a nearly black one
_LINE = "border:0;border-bottom:1px solid rgba(128,128,128,.4)"
_CELL = f"text-align:left;vertical-align:top;white-space:normal;overflow-wrap:anywhere;padding:.4em .6em;{_LINE}"
_ROW = '<tr valign="top" align="left" style="background:none">'  # attributes, too, for hosts that drop styles


class Html(str):
    """HTML that a notebook shows."""

    def _repr_html_(self) -> str:
        return str(self)

    def __repr__(self) -> str:  # a notebook stores it beside the HTML
        return f"Html({len(self)} characters)"


def text_table(
    table: pd.DataFrame,
    *,
    rows: str = "emotion",
    columns: str = "how",
    reference: pd.DataFrame | None = None,
    query: str | None = None,
    alphas: Sequence[float] | Mapping[str, float] | None = None,
    read: bool = True,
) -> Html:
    """Texts side by side, words of emotion in its colour, and under each text what judges read in it.

    >>> text_table(scored, reference=instructed, alphas=[0.5, 1])
    >>> text_table(scored[scored["emotion"] == "joy"], rows="alpha")
    >>> text_table(emolab.load_texts("topics").head(12), rows="label", columns="topic")

    columns="how" shows a sweep: unsteered, the vector by dose, each control at the largest dose shown, and from
    `reference` (answers under instruction, with `condition`) what the instruction for that emotion gets. With
    rows="alpha" each dose is a row, of one emotion. Any two columns of any table with a column `text` can be rows and
    columns instead. Of several texts in one cell the first is shown, and a line below says so; a text that is the same
    in every row stands once.

    query: the question, by its text or its id; default the first one, unless questions are rows or columns.
    alphas: doses; default the largest, with rows="alpha" all. {emotion: dose} shows each emotion at its own dose.
    read: under each text the top label of each judge, the first one's with its probability, and whether the text loops
    or refuses (columns `loop` and `refusal`, where the table has them, else as `score` would say).

    Words of emotion (`emolab.judges.feeling_words`) are bold, too, for pages that drop colours, and all that is not
    ours is escaped. Raises EmolabError for missing columns, for a question, dose or answer that is not there, and with
    columns="how" for a sweep of several settings, or of several emotions that are not the rows.
    """
    axes = [rows] if columns == "how" else [rows, columns]
    needed = ["text", *axes, *(["alpha"] if alphas is not None else [])]
    need_table(table, needed, "emolab.score(emolab.sweep(...))")
    if query is None and not {rows, columns} & {"query", "query_id"}:
        query = _first_question(table)
    chosen = table if query is None else _asked(table, query)
    if query is not None and "query" in chosen:
        query = str(chosen["query"].iloc[0])
    if columns == "how":
        instructed = reference if reference is None or query is None else _asked(reference, query)
        chosen = _by_how(chosen, rows, alphas, instructed)
    elif reference is not None:
        raise EmolabError('reference is a column of columns="how"; append its rows to the table instead')
    elif alphas is not None:
        chosen = chosen[chosen["alpha"].isin(_doses(alphas, list(chosen["alpha"].unique()), every=True))]
    look = styles([*_labels(table), *([] if reference is None else _labels(reference))])
    tops = {next(iter(table.attrs.get("judges", ())), "judge"): "top"} if "top" in chosen else {}
    tops |= {c.removesuffix("_top").replace("_", " "): c for c in map(str, chosen) if c.endswith("_top")}

    cells: dict[tuple, Mapping[Any, Any]] = {}
    for record in chosen.to_dict("records"):
        cells.setdefault((record[rows], record[columns]), record)
    down, across = _in_order(chosen[rows]), _in_order(chosen[columns])
    if not down or not across:
        raise EmolabError(f"the column {columns if down else rows} holds nothing for a text; take another one")
    head = "".join(_heading("col", _name(columns, column), look) for column in across)
    lines = [f'{_ROW}<td style="{_LINE}"></td>{head}</tr>']
    once = {c for c in across if _same([cells.get((row, c), {}).get("text") for row in down])}
    for row in down:
        dose = f", dose {alphas[row]:g}" if isinstance(alphas, Mapping) and row in alphas else ""
        line = _heading("row", _name(rows, row) + dose, look)
        for column in across if row == down[0] else [c for c in across if c not in once]:
            span = f' rowspan="{len(down)}"' if column in once else ""
            body = _text(cells.get((row, column)), look, tops if read else None)
            line += f'<td{span} style="{_CELL};box-sizing:border-box;min-width:14em;max-width:34em">{body}</td>'
        lines.append(f"{_ROW}{line}</tr>")
    most = int(chosen.groupby([rows, columns], observed=True)["text"].nunique().max())
    return _framed(query, "\n".join(lines), f"Each cell shows the first of up to {most} texts." if most > 1 else "")


def _first_question(table: pd.DataFrame) -> str | None:
    """Of the first row; None where texts answer none."""
    column = next((c for c in ("query", "query_id") if c in table), None)
    first = None if column is None else table[column].iloc[0]
    return first if isinstance(first, str) and first.strip() else None


def _asked(table: pd.DataFrame, query: str) -> pd.DataFrame:
    """The rows of a question, named by its text or its id."""
    questions = [c for c in ("query", "query_id") if c in table]
    chosen = table[(table[questions] == query).any(axis=1)]
    if chosen.empty:
        have = "; ".join(dict.fromkeys(str(q) for q in table[questions[:1]].to_numpy().ravel()))
        raise EmolabError(f"no text answers the question {shown(query)}; the table has {shown(have or 'no questions')}")
    return chosen


def _by_how(
    table: pd.DataFrame, rows: str, alphas: Sequence[float] | Mapping[str, float] | None, told: pd.DataFrame | None
) -> pd.DataFrame:
    """A sweep's rows that are shown, and the reference's, with `how` each text came about (ordered)."""
    one_setting(table)
    emotions = table["emotion"].unique()
    if rows != "emotion" and len(emotions) > 1:
        raise EmolabError(f'the table has the emotions {", ".join(emotions)}; filter it to one, or take rows="emotion"')
    plain, prompted = is_unsteered(table), table["control"] == "prompt"
    steered = table[~plain & ~prompted]
    if isinstance(alphas, Mapping):
        alphas = {emotion: alphas[emotion] for emotion in emotions if emotion in alphas}
    doses = _doses(alphas, sorted(steered["alpha"].unique()), every=rows == "alpha")
    if isinstance(alphas, Mapping):
        steered = steered[steered["alpha"] == steered["emotion"].map(alphas)]
    else:  # beside several doses of the vector, controls at the largest
        everywhere = (steered["control"] == "none") | (rows == "alpha")
        steered = steered[steered["alpha"].isin(doses) & (everywhere | (steered["alpha"] == doses[-1]))]
    place = steered["control"].map({control: i for i, control in enumerate(STEERED)})
    steered = steered.iloc[np.lexsort((steered["alpha"], place))]
    how = steered["control"].map(STEERED).fillna(steered["control"])
    if rows != "alpha" and not isinstance(alphas, Mapping):
        with_dose = (steered["control"] == "none") | (len(doses) > 1)
        how = how.mask(with_dose, how + steered["alpha"].map(", dose {:g}".format))
    unsteered, steered = table[plain].assign(how=UNSTEERED), steered.assign(how=how)
    instructed = [table[prompted]]
    if told is not None:
        need_table(told, ("condition", "text"), "emolab.score(emolab.collect_responses(...))")
        told = told.assign(emotion=told["condition"])  # in responses, emotion is what the question evokes
        for column in {"emotion", rows} & set(told) - {"alpha"}:
            told = told[told[column].isin(table[column])]
        instructed.append(told)
    instructed = [part.assign(how=INSTRUCTED) for part in instructed]
    if rows == "alpha":  # no dose is theirs: they stand beside each
        unsteered = pd.concat([unsteered.assign(alpha=dose) for dose in doses])
        instructed = [part.assign(alpha=dose) for part in instructed for dose in doses]
    shown_rows = pd.concat([part for part in (unsteered, steered, *instructed) if len(part)], ignore_index=True)
    return shown_rows.assign(how=pd.Categorical(shown_rows["how"], shown_rows["how"].unique()))


def _doses(alphas: Sequence[float] | Mapping[str, float] | None, tested: list[float], *, every: bool) -> list[float]:
    """Which of the doses tested are shown, in order."""
    if not tested:
        raise EmolabError('the table holds no steered text, which columns="how" shows; take other rows and columns')
    if alphas is None:
        return tested if every else tested[-1:]
    wanted = need_numbers("alphas", list(alphas.values()) if isinstance(alphas, Mapping) else alphas)
    wanted = sorted({alpha for alpha in wanted if alpha != 0 or 0 in tested})  # what is unsteered is shown anyway
    lost = [alpha for alpha in wanted if alpha not in tested]
    if lost or not wanted:
        have = ", ".join(f"{alpha:g}" for alpha in tested)
        raise EmolabError(f"no text is steered at dose {lost[0] if lost else 0:g}; the table has {have}")
    return wanted


def _labels(table: pd.DataFrame) -> list[str]:
    """Every emotion that a table names, also within mixtures."""
    columns = [c for c in map(str, table) if c in ("emotion", "label", "condition", "top") or c.endswith("_top")]
    names = [name for c in columns for name in table[c].unique() if isinstance(name, str)]
    names = [label for name in names for label in parse_mixture(name)]
    names += [c.removeprefix("p_") for c in map(str, table) if c.startswith("p_")]
    return [label for label in dict.fromkeys(names) if label not in (NEUTRAL, UNREAD) and label.strip()]


def _in_order(values: pd.Series) -> list:
    """What rows or columns are: categories and numbers in their order, emotions in that of all figures."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return [value for value in values.cat.categories if (values == value).any()]
    unique = list(values.dropna().unique())
    return sorted(unique) if pd.api.types.is_numeric_dtype(values) else order(unique)


def _name(axis: str, value: Any) -> str:
    if axis == "control":
        return STEERED.get(value) or str(CONTROLS.get(value, {}).get("label", value))
    return f"dose {value:g}" if axis == "alpha" else f"{value:g}" if isinstance(value, float) else str(value)


def _same(texts: list[Any]) -> bool:
    return len(texts) > 1 and len(set(texts)) == 1 and isinstance(texts[0], str)


def _heading(scope: str, name: str, look: Mapping[str, tuple[str, str]]) -> str:
    return f'<th scope="{scope}" style="{_CELL};min-width:5em">{_marked(name, look)}</th>'


def _text(record: Mapping[Any, Any] | None, look: Mapping[str, tuple[str, str]], tops: dict[str, str] | None) -> str:
    """A cell: the text, and in a small line what was read in it."""
    if record is None or not isinstance(record["text"], str):
        return "–"
    text = _visible(record["text"].strip())
    words = f'<div dir="auto">{_marked(text, look) if text else "(no words)"}</div>'
    readings = [] if tops is None else [*_readings(record, look, tops), *_faults(record, text)]
    return f"{words}<small>{' · '.join(readings)}</small>" if readings else words


def _readings(record: Mapping[Any, Any], look: Mapping[str, tuple[str, str]], tops: dict[str, str]) -> Iterable[str]:
    for judge, column in tops.items():
        top = record.get(column)
        if not isinstance(top, str):
            continue
        p = record.get(f"p_{top}") if column == "top" else None
        value = top if p is None or pd.isna(p) else f"{top} {p:.2f}"
        words = "not read" if top == UNREAD else value if len(tops) > 1 else f"read as {value}"
        words = f"{judge}: {words}" if len(tops) > 1 else words
        yield f'<span style="color:{_legible(look[top][0] if top in look else GREY)}">{escape(_visible(words))}</span>'


def _faults(record: Mapping[Any, Any], text: str) -> Iterable[str]:
    for column, is_fault, word in (("loop", is_loop, "loops"), ("refusal", is_refusal, "refuses")):
        known = record.get(column)
        if is_fault(text) if known is None or pd.isna(known) else known:
            yield word


def _marked(text: str, look: Mapping[str, tuple[str, str]]) -> str:
    """A text as HTML, each word of an emotion bold and in its colour."""
    text, parts, end = _visible(text), [], 0
    for start, stop, label in emotion_spans(text, tuple(look)):
        color = look[label][0]
        style = f"color:{_legible(color)};border-bottom:2px solid {color}"
        parts += [escape(text[end:start]), f'<b style="{style}">{escape(text[start:stop])}</b>']
        end = stop
    return "".join([*parts, escape(text[end:])]).replace("\n", "<br>")


def _visible(text: str) -> str:
    """Composed, with signs in place of control characters (␀) and of what no file can hold."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n"))
    kinds = {c: unicodedata.category(c) for c in set(text) - {"\n", "\t"}}
    signs = {c: chr(0x2400 + ord(c)) if c < " " else "\ufffd" for c, kind in kinds.items() if kind in ("Cc", "Cs")}
    return text.translate(str.maketrans(signs))


def _legible(color: str) -> str:
    """The colour, darker or lighter, so that words in it can be read on a white page and on a black one."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    if luminance > _MIDDLE:
        linear = [c * _MIDDLE / luminance for c in linear]
    else:
        linear = [c + (1 - c) * (_MIDDLE - luminance) / (1 - luminance) for c in linear]
    red, green, blue = (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in linear)
    return to_hex((red, green, blue))


def _framed(query: str | None, lines: str, below: str) -> Html:
    """The table under its question, in a box that scrolls sideways; dollars in it are no mathematics."""
    above = f'<p style="margin:.3em 0"><b>Question:</b> {escape(_visible(query))}</p>' if query else ""
    note = f"<p><small>{below}</small></p>" if below else ""
    table = "border-collapse:collapse;table-layout:auto;margin:0;font-size:.92em;line-height:1.45"
    box = '<div class="tex2jax_ignore mathjax_ignore" style="overflow-x:auto">'
    return Html(f'{box}{above}<table style="{table}">\n{lines}\n</table>{note}</div>')
