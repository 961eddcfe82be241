"""A chat with dials: every answer beside its controls, and each token in the colour of an emotion as it comes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import pandas as pd
import traitlets
from IPython.display import display

from emolab.answers.writing import Writing, need_writing
from emolab.base.errors import EmolabError, need_number
from emolab.judges.judges import ask, judges_of
from emolab.models.model import Model
from emolab.models.prompts import text_ids
from emolab.steering.settings import Setting
from emolab.steering.steering import Steering
from emolab.vectors.vectors import EmotionVectors
from emolab.widgets.answers import code_line, one_line, token_page, turn_page
from emolab.widgets.conversation import Answer, Conversation, Turn
from emolab.widgets.dials import Dials
from emolab.widgets.work import Latest, own_copy, random_control

DELAY = 0.3  # seconds without a change before the model is asked
SHOWN = 0.12  # seconds between two views of a text that is being written

class _Stale(Exception):
    """Raised before a token that nobody waits for any more."""


class _Turns(anywidget.AnyWidget):
    """The conversation as HTML, a page a turn; `picked` is the token that was clicked, "turn.arm.token.click"."""

    _esm = Path(__file__).with_name("chat.js")
    pages = traitlets.List(traitlets.Unicode()).tag(sync=True)
    picked = traitlets.Unicode().tag(sync=True)


@dataclasses.dataclass(frozen=True)
class _Work:
    """Arms of a turn to write, behind earlier turns; or a token to look up, where there are no arms."""

    turn: Turn
    before: list[Turn]
    arms: list[str]
    token: tuple[str, int] | None = None


class Chat(widgets.VBox):
    """Talk to a model whose dials you turn: steered, unsteered and randomly steered answers side by side, as they come.

    >>> chat = Chat(model, vectors, setting=emolab.Setting(site="attn", layers="late"), doses={"joy": 1.0})
    >>> chat                                                    # in a notebook: the chat; once saved: its last texts
    >>> chat.ask("Tell me about the park.")                    # as if typed
    >>> chat.wait(), chat.texts["steered"], chat.steering       # the Steering to go on with
    >>> print(chat.code())                                      # the lines that write the same texts

    doses and setting (layers "all", or neighbouring ones) are what it starts with; each turn keeps its own. An emotion
    at 0 is left alone, whatever the op. Vectors of valence and arousal (`emolab.geometry.affect_axes`) have a pad to
    drag in. "random" is the control: with op "add" a random direction, at every layer as long as what is added, else
    random directions in the place of the vectors. Every arm goes on from its own earlier answers. judge: as for
    `emolab.score`, None for its first one, False for none. writing: as for `emolab.generate`.

    A token has the colour of the emotion whose specific part the state points along most where the token is chosen, in
    standard deviations of neutral texts; curves below show all. The state is read below the steered layers; where that
    would be in the first third, in the middle, behind what steering did, as is said. A click on a token shows its
    scores by layer and the likeliest others, to go on from one of these.

    Texts are written in a thread, so that other cells can run meanwhile; "stop" ends them at the next token. The chat
    has the model's weights but its own hooks: neither sees the other's steering. Errors stand in the chat in one line.
    Raises EmolabError for vectors of another model, an unknown emotion, site or layer.
    """

    live = False  # whether every change of a dial writes the one turn again

    def __init__(
        self,
        model: Model,
        vectors: EmotionVectors,
        *,
        prompt: str = "",
        doses: dict[str, float] | None = None,
        setting: Setting = Setting(),
        judge: Any = False,
        max_new_tokens: int = 80,
        writing: Writing = Writing(),
    ) -> None:
        self._runs = Latest(self._run)
        need_number("max_new_tokens", max_new_tokens, 1, whole=True)
        need_writing(writing)
        self.dials = Dials(model, vectors, doses or {}, setting, self._moved)
        self._talk = Conversation(own_copy(model), vectors, max_new_tokens=max_new_tokens, writing=writing)
        self._judge = None if judge is False else judges_of(judge)[0]
        self._number, self._tokens, self._told = 0, 0, 0.0
        self._earlier: list[list[Turn]] = []  # what redoing, editing and forking replaced
        self._output: Any = None  # where the copy that a saved notebook keeps is shown
        self._picked: tuple[int, str, int] | None = None
        self._edited: int | None = None  # the turn whose question stands in the prompt's field
        self._build(prompt)
        super().__init__(self._rows())

    def _build(self, prompt: str) -> None:
        self.prompt = widgets.Text(
            prompt, description="prompt", placeholder="Write, and press Enter", continuous_update=not self.live,
            layout={"flex": "1 1 20em"},
        )  # fmt: skip
        self.control = widgets.Checkbox(True, description="random control", indent=False, layout={"width": "10em"})
        self._turns = _Turns()
        clicks: dict[str, Callable[[], None]] = {
            "send": self.ask, "redo": self.redo, "edit": self._edit, "back": self.back, "all to 0": self.dials.zero,
            "stop": self._cancel, "go on from here": self._go_on_here,
        }  # fmt: skip
        self._buttons = {what: widgets.Button(description=what, layout={"width": "auto"}) for what in clicks}
        for what, click in clicks.items():
            self._buttons[what].on_click(lambda _, click=click: self._heard(click))
        self._buttons["stop"].disabled = self._buttons["back"].disabled = True
        self._status, self._token = widgets.HTML(), widgets.HTML()
        self._instead = widgets.Dropdown(description="instead")
        self._details = widgets.VBox([self._token, widgets.HBox([self._instead, self._buttons["go on from here"]])])
        self._details.layout.display = "none"
        self._turns.observe(self._look, "picked")
        if self.live:
            self.prompt.observe(lambda _: self._moved(), "value")
        else:  # Enter; a field that is left has not been sent
            self.prompt.on_msg(self._entered)
        self.control.observe(lambda _: self._moved(), "value")

    def _rows(self) -> list[widgets.Widget]:
        sent = [] if self.live else [self._buttons[what] for what in ("send", "redo", "edit", "back")]
        line = widgets.HBox([self.prompt, *sent], layout=widgets.Layout(flex_flow="row wrap"))
        others = [self.control, self._buttons["all to 0"], self._buttons["stop"], self._status]
        controls = [line, self.dials, widgets.HBox(others, layout={"align_items": "center"})]
        texts = [self._turns, self._details]
        return [*controls, *texts] if self.live else [*texts, *controls]

    @property
    def steering(self) -> Steering | None:
        """What the controls say now; None where all doses are 0. Raises EmolabError for what makes no sense."""
        return self.dials.steering

    @property
    def turns(self) -> list[Turn]:
        """What was asked and answered: `asked`, `answers` by arm (`text`, `steering`, `scores`), `judged`."""
        return self._talk.turns

    @property
    def texts(self) -> dict[str, str]:
        """The last turn's answers, by arm."""
        return {arm: answer.text for arm, answer in self.turns[-1].answers.items()} if self.turns else {}

    def ask(self, asked: str | None = None) -> None:
        """Ask, behind all earlier turns. asked: default what stands in the prompt's field, which is emptied then."""
        place = len(self.turns) if self._edited is None or asked is not None else self._edited
        self._submit(self._work(self.prompt.value if asked is None else asked, self.turns[:place]))
        if asked is None and not self.live:
            self.prompt.value, self._edited = "", None

    def redo(self, turn: int = -1) -> None:
        """Write a turn again, with the dials as they are now. Later turns leave; `back` brings them again."""
        self.edit(turn, self._turn(turn).asked)

    def edit(self, turn: int, asked: str) -> None:
        """Ask something else in the place of a turn, with the dials as they are now. Later turns leave."""
        self._submit(self._work(asked, self.turns[: self.turns.index(self._turn(turn))]))

    def fork(self, turn: int, arm: str, token: int, instead: int | str | None = None) -> None:
        """Go on from a token of an answer, with another one in its place; later turns leave.

        instead: a token's id or its text, one of `turns[turn].answers[arm].others[token]`; None chooses anew.
        """
        old = self._turn(turn)
        if arm not in old.answers or not 0 <= token < len(old.answers[arm].ids):
            known = ", ".join(f"{name} ({len(a.ids)} tokens)" for name, a in old.answers.items())
            raise EmolabError(f"no token {token!r} of {arm!r} in this turn; it has {known}")
        chosen = text_ids(self._talk.model, [instead])[0] if isinstance(instead, str) else [instead]
        if len(chosen) != 1:
            raise EmolabError(f"{instead!r} is not one token of this model; give one of others, or an id")
        answers = {**old.answers, arm: self._talk.forked(old.answers[arm], token, chosen[0])}
        before = self.turns[: self.turns.index(old)]
        self._submit(_Work(Turn(old.asked, answers), before, [arm]))

    def back(self) -> None:
        """What stood here before the last redoing, editing or forking."""
        with self._runs.lock:
            self._runs.cancel()
            if self._earlier:
                self._talk.turns = self._earlier.pop()
            self._buttons["back"].disabled = not self._earlier
            self._show()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the texts are those that were asked for; False where that took longer than `timeout` seconds."""
        return self._runs.wait(timeout)

    def close(self) -> None:
        """Stop writing and take the chat off the page."""
        self._runs.cancel()
        super().close()

    def code(self) -> str:
        """The Python that writes the same steered answers (unsteered, where nothing was steered), a line a turn."""
        said = [(turn.asked, turn.main.text) for turn in self.turns]
        return "\n".join(code_line(turn.main, turn.asked, self._talk, said[:i]) for i, turn in enumerate(self.turns))

    def transcript(self) -> pd.DataFrame:
        """One row a turn and arm: `turn, asked, arm, text, doses` and what the judge read, `p_<emotion>`."""
        rows = [
            {
                "turn": number, "asked": turn.asked, "arm": arm, "text": answer.text,
                "doses": dict(answer.steering.doses) if answer.steering is not None else {},
                **{f"p_{label}": p for label, p in turn.judged.get(arm, {}).items()},
            }
            for number, turn in enumerate(self.turns)
            for arm, answer in turn.answers.items()
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=None if rows else ["turn", "asked", "arm", "text", "doses"])

    def scores(self) -> pd.DataFrame:
        """What was read of each token: `turn, arm, position, token, emotion, score`."""
        return self._talk.scores()

    def figure(self, turn: int = -1) -> Any:
        """A still picture of a turn: the scores of each arm, token by token (`emolab.plot.token_trace`)."""
        from emolab.plot.reading import token_trace

        scores, place = self.scores(), self.turns.index(self._turn(turn))
        return token_trace(scores[scores["turn"] == place])

    def _turn(self, turn: int) -> Turn:
        if not -len(self.turns) <= turn < len(self.turns):
            raise EmolabError(f"no turn {turn}; the conversation has {len(self.turns)}")
        return self.turns[turn]

    def _ipython_display_(self) -> None:
        """The controls, and below them the texts: an output of its own, which a saved notebook keeps without them."""
        name = type(self).__name__
        display({**(self._repr_mimebundle_() or {}), "text/plain": name}, raw=True)
        self._output = display(self._texts(), raw=True, display_id=f"emolab-{self.model_id}")

    def _texts(self) -> dict[str, str]:
        pages = "".join(self._turns.pages) or self._status.value
        return {"text/plain": type(self).__name__, "text/html": f'<div class="emolab-copy">{pages}</div>'}

    def _heard(self, click: Callable[[], None]) -> None:
        """What a button does; an error stands in the chat, not in a log that nobody reads."""
        try:
            click()
        except EmolabError as error:
            self._say(error)

    def _moved(self) -> None:
        """A dial was moved: the one turn is written again, where that is what it is for."""
        if self.live:
            self._heard(self.ask)

    def _entered(self, widget: Any, content: dict[str, Any], buffers: Any) -> None:
        if content.get("event") == "submit":
            self._heard(self.ask)

    def _work(self, asked: str, before: list[Turn]) -> _Work:
        """The dials as they are: the worker reads no widget."""
        with self._runs.lock:
            self._runs.cancel()
            if not isinstance(asked, str) or not asked.strip():
                raise EmolabError("the prompt is empty; write a question or a situation")
            steering, before = self.steering, [] if self.live else before
            arms: dict[str, Steering | None] = {"unsteered": None}
            if steering is not None:
                arms["steered"] = steering
                if self.control.value:
                    arms["random"] = random_control(steering)
            known: dict[str, Answer] = {}  # what is written already: the unsteered text while dials move
            if self.live and self.turns and self.turns[-1].asked == asked:
                known["unsteered"] = self.turns[-1].answers["unsteered"]
            answers = {
                arm: known.get(arm) or Answer(self._talk.prompt(asked, arm, before), one) for arm, one in arms.items()
            }
            return _Work(Turn(asked, answers), before, [arm for arm in arms if arm not in known])

    def _submit(self, work: _Work) -> None:
        with self._runs.lock:
            self._runs.cancel()
            self._buttons["stop"].disabled = False
            self._status.value = "writing …"
            if not self.live:
                if len(work.before) < len(self.turns):
                    self._earlier.append(list(self.turns))
                    self._buttons["back"].disabled = False
                self._talk.turns = [*work.before, work.turn]
            self._runs.submit(work, DELAY if self.live else 0)

    def _cancel(self) -> None:
        with self._runs.lock:
            self._runs.cancel()
            self._buttons["stop"].disabled = True
            self._status.value = "stopped; the texts are those of the setting above them" if self.live else "stopped"
            self._show()

    def _look(self, change: Any) -> None:
        """A token was clicked: its details, once nothing is being written."""
        turn, arm, token, _ = change.new.split(".")
        with self._runs.lock:
            if not self._runs.wait(0):
                self._status.value = "a token can be looked up when the texts are written, or stopped"
                return
            place = int(turn)
            if place < len(self.turns) and int(token) < len(self.turns[place].answers[arm].ids):
                self._picked = place, arm, int(token)
                self._runs.submit(_Work(self.turns[place], [], [], (arm, int(token))), 0)

    def _edit(self) -> None:
        """Put the question of the turn with the picked token, or of the last one, into the field, to be asked anew."""
        turn = self._picked[0] if self._picked and self._picked[0] < len(self.turns) else -1
        self.prompt.value = self._turn(turn).asked
        self._edited = self.turns.index(self._turn(turn))
        self._status.value = f"Enter asks this in the place of turn {self._edited + 1}; later turns leave"

    def _go_on_here(self) -> None:
        if self._picked is not None:
            instead = self._instead.value
            self.fork(*self._picked, None if instead == -1 else instead)

    def _run(self, work: _Work, number: int) -> None:
        self._number, self._tokens, self._told = number, 0, time.monotonic()
        error: Exception | None = None
        try:
            if work.token is not None:
                self._look_up(work, number)
                return
            if work.arms:
                self._talk.write(work.turn, work.arms, self._each)
            self._judged(work.turn)
        except _Stale:
            with self._runs.lock:
                if self.turns and self.turns[-1] is work.turn:  # stopped: one token more than was shown
                    self._show()
            return
        except Exception as failed:  # in a thread nobody else would hear of it
            error = failed
        with self._runs.lock:
            if self._runs.stale(number):
                return
            self._buttons["stop"].disabled = True
            if error is not None:
                self._say(error)
                return
            if self.live:
                self._talk.turns = [work.turn]
            self._status.value = ""
            self._show()

    def _judged(self, turn: Turn) -> None:
        """What the judge reads in the answers; in the note, whose bars these are, and what the colours are."""
        steered = turn.answers.get("steered")
        layer, above = self._talk.place(steered.steering if steered else None)
        read = "behind" if above and steered else "before"
        turn.note = f"colours: {self._talk.site} of layer {layer}, {read} steering, SD of neutral texts"
        if self._judge is None:
            return
        try:
            texts = [answer.text for answer in turn.answers.values()]
            probabilities = ask(self._judge, texts, [turn.asked] * len(texts))
            turn.judged = {
                arm: dict(zip(self._judge.labels, row, strict=True))
                for arm, row in zip(turn.answers, probabilities.tolist(), strict=True)
            }
            turn.note += f" · bars: judge “{self._judge.name}”"
        except Exception as failed:  # a judge is anybody's code; the texts are worth showing without it
            turn.note += f" · no judge: {one_line(failed)}"

    def _look_up(self, work: _Work, number: int) -> None:
        arm, token = work.token or ("", 0)
        answer = work.turn.answers[arm]
        page = token_page(answer, token, self._talk.by_layer(answer, token))
        with self._runs.lock:
            if self._runs.stale(number):
                return
            self._token.value = page
            likely = answer.others[token] if token < len(answer.others) else []
            self._instead.options = [("choose anew", -1), *((f"{piece!r} {p:.2f}", i) for i, piece, p in likely)]
            self._instead.value = -1
            self._details.layout.display = ""

    def _each(self) -> None:
        """Before each token: stop where nobody waits for the text, and show how far it is."""
        if self._runs.stale(self._number):
            raise _Stale
        self._tokens += 1
        first = self._tokens == 2  # nothing stands there before; the first token is shown at once
        if first or (self._tokens > 2 and time.monotonic() - self._told > SHOWN):
            self._told = time.monotonic()
            with self._runs.lock:
                if not self._runs.stale(self._number):
                    self._status.value = f"writing, token {self._tokens} of at most {self._talk.max_new_tokens}"
                    if not self.live:
                        self._show(whole=False)

    def _show(self, whole: bool = True) -> None:
        """The turns, as they are; of a text that is being written only the last page is made anew."""
        kept = [] if whole else list(self._turns.pages)[: len(self.turns) - 1]
        codes = self.code().split("\n") if whole else [""] * len(self.turns)
        written = range(len(kept), len(self.turns))
        self._turns.pages = [*kept, *(turn_page(self.turns[i], i, self._talk.emotions, codes[i]) for i in written)]
        if whole and self._output is not None:
            self._output.update(self._texts(), raw=True)

    def _say(self, error: Exception) -> None:
        self._buttons["stop"].disabled = True
        self._status.value = f'<span role="alert" style="color:#D55E00">⚠ {escape(one_line(error))}</span>'


class SteeringPanel(Chat):
    """A chat of one turn, written again whenever a dial moves: what a dose does, and what a judge reads in it.

    >>> panel = SteeringPanel(model, vectors, setting=emolab.Setting(site="attn"), doses={"joy": 1.25})
    >>> panel                                                   # in a notebook: the panel; once saved: its last texts
    >>> panel.dials.sliders["fear"].value = 1.0                 # as if moved by hand
    >>> panel.wait(), panel.texts["steered"], panel.steering    # the Steering to go on with

    The first texts are written in the cell that makes the panel. See `Chat` for the arguments and for what it shows; a
    newer change stops an older text at its next token.
    """

    live = True

    def __init__(
        self,
        model: Model,
        vectors: EmotionVectors,
        *,
        prompt: str = "Tell me about the park.",
        doses: dict[str, float] | None = None,
        setting: Setting = Setting(),
        judge: Any = None,
        max_new_tokens: int = 80,
        writing: Writing = Writing(),
    ) -> None:
        super().__init__(
            model, vectors, prompt=prompt, doses=doses, setting=setting, judge=judge, max_new_tokens=max_new_tokens,
            writing=writing,
        )  # fmt: skip
        self._runs.submit(self._work(prompt, []), 0)
        self.wait()
