"""What the panel shows of the model's answers, as HTML that also stands in a notebook without a kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd

from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError
from emolab.base.labels import styles
from emolab.base.tables import span
from emolab.judges.judges import UNREAD
from emolab.steering.settings import FIELDS
from emolab.widgets.conversation import Answer, Conversation, Turn
from emolab.widgets.page import FADED, LINE, shade, signed, spaced

LEAST, MOST = 2.0, 5.0  # standard deviations of neutral text from which a token is coloured, and of the deepest colour
_BLOCKS = 14  # of a trace


def code_line(answer: Answer, asked: str, talk: Conversation, earlier: Sequence[tuple[str, str]] = ()) -> str:
    """The line that writes the same text without the chat; earlier: the turns before, (asked, answered)."""
    more = "" if talk.max_new_tokens == 80 else f", max_new_tokens={talk.max_new_tokens}"
    if talk.writing != Writing():
        more += f", writing=emolab.{talk.writing!r}"
    steering = answer.steering
    if steering is not None:
        options = [
            f"{name}={getattr(steering, name)!r}" for name, usual in FIELDS.items() if getattr(steering, name) != usual
        ]
        doses = {e: round(d, 4) for e, d in steering.doses.items()}
        more = f", steering=emolab.Steering({', '.join(['vectors', repr(doses), *options])}){more}"
    prompt = f"emolab.models.render_conversation(model, {list(earlier)!r}, {asked!r})"
    if answer.begun:
        return f"emolab.answers.go_on(model, {prompt}, {answer.ids[: answer.begun]!r}{more})"
    if earlier:
        return f"emolab.generate(model, {prompt}, raw=True{more})"
    return f"emolab.generate(model, {asked!r}{more})"


def turn_page(turn: Turn, number: int, emotions: Sequence[str], code: str = "") -> str:
    """A turn as HTML: what was asked, the answers side by side, their traces and bars.

    A token has the colour of the emotion that it points to most, from LEAST standard deviations of neutral text on.
    Only what notebooks let through in outputs they do not trust; `data-at` is what `chat.js` looks for.
    """
    cell = "text-align:left;vertical-align:top;white-space:normal;line-height:1.6;padding:0.4em 1em 0.4em 0"
    cell += f";width:{100 // max(1, len(turn.answers))}%"
    head = "".join(f'<th scope="col" style="{cell};border-bottom:{LINE}">{escape(arm)}</th>' for arm in turn.answers)
    body = "".join(
        f'<td style="{cell}">{_tokens(answer, f"{number}.{arm}", emotions)}{_traces(answer, emotions)}'
        f"{_bars(turn.judged[arm]) if arm in turn.judged else ''}</td>"
        for arm, answer in turn.answers.items()
    )
    small = f"font-size:0.85em;{FADED}"
    steering = next((a.steering for a in turn.answers.values() if a.steering is not None), None)
    doses = {} if steering is None else steering.doses
    dials = ", ".join(f"{emotion} {signed(dose, 2)}" for emotion, dose in doses.items()) or "all dials at 0"
    if steering is not None:
        dials += f" · {steering.site}, layers {span(steering.layer_numbers)}, {steering.op}, unit {steering.unit}"
    line = f'<code style="white-space:pre-wrap">{escape(code)}</code>'
    line = f"{escape(dials)}{f'<details><summary>code</summary>{line}</details>' if code else ''}"
    return (
        f'<div class="emolab-turn" style="margin:0.6em 0"><div><b>{escape(turn.asked)}</b></div>'
        f'<div style="{small};margin:0.2em 0;line-height:1.4">{line}</div>'
        f'<table style="width:100%;max-width:76em;table-layout:fixed;border-collapse:collapse"><tr>{head}</tr>'
        f'<tr>{body}</tr></table><div style="{small}">{escape(turn.note)}</div></div>'
    )


def token_page(answer: Answer, token: int, by_layer: pd.DataFrame) -> str:
    """What is known of one token: its scores by layer as small bars, and the tokens that might stand in its place."""
    scores = {str(emotion): own["score"].to_numpy() for emotion, own in by_layer.groupby("emotion", sort=False)}
    looks = styles(scores)
    rows = [
        f"<div>{_name(emotion, looks)}{_spark(own, looks[emotion][0])} layers 0 to {len(own) - 1}, "
        f"{signed(own[-1], 1)} at the last</div>"
        for emotion, own in scores.items()
    ]
    chosen = escape(answer.pieces[token].strip() or "·")
    return f'<div style="line-height:1.5"><b>{chosen}</b> (token {token + 1})</div>{"".join(rows)}'


def _tokens(answer: Answer, place: str, emotions: Sequence[str]) -> str:
    """The text, token by token, each with its colour and its number."""
    looks, spans = styles(emotions), []
    for i, piece in enumerate(answer.pieces):
        style, title = "", "not read"
        if i < len(answer.scores):
            best = int(np.argmax(answer.scores[i]))
            score = float(answer.scores[i][best])
            title = f"{emotions[best]} {signed(score, 1)}"
            if score >= LEAST:
                style = f"background-color:{shade(looks[emotions[best]][0], min(1.0, score / MOST))}"
        if i in answer.forced:
            style += ";outline:1px dashed currentColor"
            title += ", chosen by hand"
        gap, word = spaced(piece)
        word = word.replace("\n", "<br>")
        spans.append(
            f'{gap}<span data-at="{escape(place)}.{i}" role="button" tabindex="{-1 if i else 0}" '
            f'title="{escape(title)}" style="{style}">{word}</span>'
        )
    return f'<div class="emolab-answer">{"".join(spans) or "<i>(nothing)</i>"}</div>'


def _traces(answer: Answer, emotions: Sequence[str]) -> str:
    """A small curve for each emotion, one block a token."""
    if not len(answer.scores):
        return ""
    looks = styles(emotions)
    rows = [
        f'<div style="white-space:nowrap">{_name(emotion, looks)}{_spark(answer.scores[:, i], looks[emotion][0])}</div>'
        for i, emotion in enumerate(emotions)
    ]
    return f'<div style="margin:0.4em 0;line-height:1.3;font-size:0.8em">{"".join(rows)}</div>'


def _name(emotion: str, looks: Mapping[str, tuple[str, str]]) -> str:
    wide = min(20, max(5, 0.62 * max(map(len, looks))))  # em
    return f'<span style="display:inline-block;width:{wide:g}em">{escape(emotion)}</span>'


def _spark(values: np.ndarray, colour: str) -> str:
    """Numbers as blocks of eight heights from 0 to MOST, means of neighbours where there are many."""
    bins = np.array_split(values, min(len(values), _BLOCKS))
    heights = [int(np.clip(round(7 * float(np.mean(own)) / MOST), 0, 7)) for own in bins]
    shown = "".join("▁▂▃▄▅▆▇█"[height] for height in heights)
    return f'<span aria-hidden="true" style="color:{colour};letter-spacing:-0.05em">{shown}</span>'


def _bars(probabilities: dict[str, float]) -> str:
    if np.isnan(list(probabilities.values())).all():
        return f"<i>{UNREAD}: this judge cannot read it</i>"
    looks, rows = styles(probabilities), []
    for label, p in probabilities.items():
        bar = f"display:inline-block;height:0.75em;width:{7 * p:.2f}em;background-color:{looks[label][0]}"
        bar += ";outline:1px solid rgba(128,128,128,0.6)"  # dark bars on a dark page
        rows.append(
            f'<div style="white-space:nowrap;line-height:1.35">{_name(label, looks)}<span style="{bar}"></span> '
            f"{p:.2f}</div>"
        )
    return "".join(rows)


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, EmolabError) else f"{type(error).__name__}: {text}"[:300]
