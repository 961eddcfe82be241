"""How sentences are made: a number with its interval, a list of names, and sentences that a notebook shows as prose."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec

import numpy as np
import pandas as pd

from emolab.base.stats import LEVEL, clusters_of, interval, least_p

P = ParamSpec("P")


UNMEASURED = "No value was measured."


class Unmeasured(Exception):
    """A table holds nothing that a sentence or a title could be about."""


class Sentences(str):
    """Some sentences; a notebook shows them as a paragraph.

    >>> said = Sentences("Joy comes first.", "Anger comes last.")
    >>> said.verdict
    'Joy comes first.'
    """

    verdict: str

    def __new__(cls, *sentences: str) -> Sentences:
        said = [sentence for sentence in sentences if sentence]
        if not said:
            raise Unmeasured
        said = [readable(sentence) for sentence in said]
        made = super().__new__(cls, " ".join(said))
        made.verdict = said[0]
        return made

    def _repr_markdown_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return str(self)


def readable(told: str) -> str:
    """What is told, with "unknown" in place of every number that nobody knows.

    >>> readable("Of them nan% are kept (cosine +nan).")
    'Of them unknown are kept (cosine unknown).'
    """
    return re.sub(r"(?<![\w.])[+-]?nan\b%?", "unknown", told)


def number(value: Any, low: Any = float("nan"), high: Any = float("nan"), *, signed: bool = False) -> str:
    """A number with two decimals and its interval.

    >>> number(0.5, 0.25, 0.75), number(0.5, signed=True)
    ('0.50 [0.25, 0.75]', '+0.50')
    """
    form = "{:+.2f}" if signed else "{:.2f}"
    if not np.isfinite(value):
        return "unknown"
    # To nine digits first: of the same share, summed in two orders, one must not read 0.77 and the other 0.78.
    told, *bounds = [form.format(round(round(x, 9), 2) + 0.0) for x in (value, low, high)]  # 0.0 added: no -0.00
    return f"{told} [{bounds[0]}, {bounds[1]}]" if np.isfinite(low) else told


def bounded(row: Any, column: str = "value", *, signed: bool = False) -> str:
    """A number of a row with its interval, the columns lo and hi.

    >>> bounded({"share": 0.5, "lo": 0.25, "hi": 0.75}, "share")
    '0.50 [0.25, 0.75]'
    """
    return number(row[column], row["lo"], row["hi"], signed=signed)


def listed(names: Iterable[Any], *, nothing: str = "none") -> str:
    """Names in a row.

    >>> listed(["joy", "fear", "anger"]), listed([])
    ('joy, fear and anger', 'none')
    """
    words = [str(name) for name in names]
    if len(words) < 2:
        return words[0] if words else nothing
    return f"{', '.join(words[:-1])} and {words[-1]}"


def upper(text: str) -> str:
    """A text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def measured(function: Callable[P, Sentences]) -> Callable[P, Sentences]:
    """The function, with one sentence of its own for tables in which nothing was measured: a report goes on."""

    @wraps(function)
    def say(*given: P.args, **named: P.kwargs) -> Sentences:
        try:
            return function(*given, **named)
        except Unmeasured:
            return Sentences(UNMEASURED)

    return say


def where_largest(values: pd.Series) -> Any:
    """Where a series is largest; Unmeasured where no value of it is known."""
    if values.isna().all():
        raise Unmeasured
    return values.idxmax()


def where_smallest(values: pd.Series) -> Any:
    """Where a series is smallest; Unmeasured where no value of it is known."""
    return where_largest(-values)


def largest_row(rows: pd.DataFrame, values: pd.Series) -> pd.Series:
    """The row of a table whose value, of one for each row, is largest; Unmeasured where none is known.

    By its place: tables that were put together may hold an index twice.
    """
    if values.isna().all():
        raise Unmeasured
    return rows.iloc[int(values.argmax())]


def smallest_row(rows: pd.DataFrame, values: pd.Series) -> pd.Series:
    """The row of a table whose value, of one for each row, is smallest; Unmeasured where none is known."""
    return largest_row(rows, -values)


def too_few(tests: pd.DataFrame) -> str:
    """Says so where sign flips of so few questions can find nothing.

    >>> too_few(pd.DataFrame({"n": [4, 4]})), too_few(pd.DataFrame({"n": [6]}))
    ('4 questions are too few to find a difference by: no p below 0.125 is possible.', '')
    """
    n = int(tests["n"].max())
    least = least_p(n)
    told = f"{n} questions are" if n > 1 else "One question is"
    return f"{told} too few to find a difference by: no p below {least:g} is possible." if least >= LEVEL else ""


def mean_share(rows: pd.DataFrame, column: str) -> str:
    """The mean of a column over queries, each counted once, with its interval."""
    by_query = rows.groupby("query_id")[column].mean()
    return number(by_query.mean(), *interval(by_query, clusters=clusters_of(rows)[by_query.index]))
