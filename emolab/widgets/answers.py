"""What the panel shows of the model's answers, as HTML that also stands in a notebook without a kernel."""

from __future__ import annotations

from html import escape

import numpy as np

from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError
from emolab.base.labels import styles
from emolab.judges.judges import UNREAD
from emolab.steering.settings import FIELDS
from emolab.steering.steering import Steering
from emolab.widgets.page import FADED, LINE


def code_line(prompt: str, steering: Steering | None, max_new_tokens: int, writing: Writing) -> str:
    """The line that writes the same text without the panel."""
    more = "" if max_new_tokens == 80 else f", max_new_tokens={max_new_tokens}"
    if writing != Writing():
        more += f", writing=emolab.{writing!r}"
    if steering is None:
        return f"emolab.generate(model, {prompt!r}{more})"
    options = [
        f"{name}={getattr(steering, name)!r}" for name, usual in FIELDS.items() if getattr(steering, name) != usual
    ]
    doses = {e: round(d, 4) for e, d in steering.doses.items()}
    inner = ", ".join(["vectors", repr(doses), *options])
    return f"emolab.generate(model, {prompt!r}, steering=emolab.Steering({inner}){more})"


def answers(code: str, texts: dict[str, str], judged: dict[str, dict[str, float]], note: str) -> str:
    """The texts side by side with their bars. Only styles that notebooks let through in outputs they do not trust."""
    cell = "text-align:left;vertical-align:top;white-space:normal;line-height:1.45;padding:0.4em 1em 0.4em 0"
    cell += f";width:{100 // len(texts)}%"
    head = "".join(f'<th style="{cell};border-bottom:{LINE}">{escape(k)}</th>' for k in texts)
    body = "".join(f'<td style="{cell}">{escape(t) or "<i>(nothing)</i>"}</td>' for t in texts.values())
    bars = "".join(f'<td style="{cell}">{_bars(judged[k])}</td>' for k in texts) if judged else ""
    small = f"font-size:0.85em;{FADED}"
    return (
        f'<div style="{small};margin:0.3em 0;line-height:1.4"><code style="white-space:pre-wrap">{escape(code)}</code>'
        "</div>"
        f'<table style="width:100%;max-width:76em;table-layout:fixed;border-collapse:collapse"><tr>{head}</tr>'
        f"<tr>{body}</tr><tr>{bars}</tr></table>"
        f'<div style="{small}">{escape(note)}</div>'
    )


def _bars(probabilities: dict[str, float]) -> str:
    if np.isnan(list(probabilities.values())).all():
        return f"<i>{UNREAD}: this judge cannot read it</i>"
    looks, rows = styles(probabilities), []
    wide = min(20, max(5, 0.62 * max(map(len, probabilities))))  # em
    for label, p in probabilities.items():
        bar = f"display:inline-block;height:0.75em;width:{7 * p:.2f}em;background-color:{looks[label][0]}"
        bar += ";outline:1px solid rgba(128,128,128,0.6)"  # dark bars on a dark page
        rows.append(
            f'<div style="white-space:nowrap;line-height:1.35"><span style="display:inline-block;width:{wide:g}em">'
            f'{escape(label)}</span><span style="{bar}"></span> {p:.2f}</div>'
        )
    return "".join(rows)


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, EmolabError) else f"{type(error).__name__}: {text}"[:300]
