"""A panel to steer a model by hand: sliders above, what the model then writes below."""

from __future__ import annotations

import dataclasses
import time
from html import escape
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from emolab.answers.generation import generate
from emolab.answers.writing import Writing, need_writing
from emolab.base.errors import EmolabError, need_number
from emolab.base.labels import styles
from emolab.base.progress import no_progress
from emolab.judges.judges import judges_of
from emolab.models.model import Model
from emolab.steering.settings import CHOICES, Setting
from emolab.steering.steering import Steering, as_rows
from emolab.vectors.vectors import EmotionVectors
from emolab.widgets.answers import answers, code_line, one_line
from emolab.widgets.work import Latest, default_judge, judged_by, own_copy, random_control

DELAY = 0.3  # seconds without a change before the model is asked
# Largest dose of the sliders and their step, by op and unit.
_RANGES = {"vector": (3.0, 0.05), "residual": (0.5, 0.01), "breaking": (3.0, 0.05), "ablate": (1.0, 0.05)}


def _range(op: str, unit: str) -> tuple[float, float]:
    return _RANGES["ablate" if op == "ablate" else unit]


@dataclasses.dataclass(frozen=True)
class _Request:
    prompt: str
    steering: Steering | None
    control: Steering | None
    code: str


class _Stale(Exception):
    """Raised inside a forward pass whose text nobody waits for any more."""


class SteeringPanel(widgets.VBox):
    """Sliders for the dose of each emotion, the steered text beside the unsteered one, and what a judge reads in them.

    >>> panel = SteeringPanel(model, vectors, setting=emolab.Setting(site="attn"), doses={"joy": 1.25})
    >>> panel                                                   # in a notebook: the panel; once saved: its last texts
    >>> panel.sliders["fear"].value = 1.0                       # as if moved by hand
    >>> panel.wait(), panel.texts["steered"], panel.steering    # the Steering to go on with

    doses, setting (layers "all", or neighbouring ones) and prompt are what it starts with.
    An emotion at 0 is left alone, whatever the op. judge: as for `emolab.score`, default its first one; False for none.
    writing: as for `emolab.generate`. "random" is the control: with op "add" a random direction, at every layer as long
    as what is added, else random directions in the place of the vectors.

    The first texts are written in the cell that makes the panel; later ones in a thread, so that other cells can run
    meanwhile. A newer change stops an older text at its next token. The panel has the model's weights but its own
    hooks: neither sees the other's steering. Errors, of a prompt that is too long or a dose without meaning, stand in
    the panel in one line. Raises EmolabError for vectors of another model, an unknown emotion, site or layer.
    """

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
        self._runs = Latest(self._run, DELAY)
        need_number("max_new_tokens", max_new_tokens, 1, whole=True)
        need_writing(writing)
        self._options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "writing": writing}
        start = Steering(vectors, doses or {vectors.emotions[0]: 0.0}, **vars(setting))
        as_rows(model, start)
        span = sorted(start.layer_numbers)
        if span != list(range(span[0], span[-1] + 1)):
            raise EmolabError(
                f'layers are {setting.layers}; the panel steers "all" or neighbouring layers, such as [2, 3, 4]'
            )
        self._model, self._vectors, self._setting = own_copy(model), vectors, setting
        for module in {id(m): m for m in (self._model.hf, self._model.bridge.original_model)}.values():
            module.register_forward_pre_hook(self._tick)
        self._judge = default_judge() if judge is None else None if judge is False else judges_of(judge)[0]
        self._plain: dict[str, str] = {}  # the unsteered text to the newest prompt
        self._number, self._tokens, self._told, self._linking = 0, 0, 0.0, False
        self._html, self._output = "", None  # what is shown of the texts, and where
        self.texts: dict[str, str] = {}
        self.probabilities: dict[str, dict[str, float]] = {}
        self._build(prompt, doses or {}, setting, (span[0], span[-1]))
        super().__init__(self._rows())
        self._runs.now(self._request())
        for widget in self._inputs:
            widget.observe(self._changed, "value")

    def _build(self, prompt: str, doses: dict[str, float], setting: Setting, layers: tuple[int, int]) -> None:
        name = min(20, max(5.5, 0.65 * max(map(len, self._vectors.emotions))))  # em, for the longest label
        wide, narrow = widgets.Layout(width="auto"), widgets.Layout(width=f"{18 + name}em")
        words = {"description_width": f"{name}em"}
        self.prompt = widgets.Text(prompt, description="prompt", continuous_update=False, style=words, layout=wide)
        looks, (top, step) = styles(self._vectors.emotions), _range(setting.op, setting.unit)
        top = max([top, *map(abs, doses.values())])
        self.sliders = {
            e: widgets.FloatSlider(
                doses.get(e, 0.0), min=-top, max=top, step=step, description=e, readout_format="+.2f", layout=narrow,
                style=words | {"handle_color": looks[e][0]},
            )
            for e in self._vectors.emotions
        }  # fmt: skip
        last = self._vectors.n_layers - 1
        more = {"style": {"description_width": "4em"}, "layout": {"width": "20em"}}
        self.layers = widgets.IntRangeSlider(value=layers, min=0, max=last, description="layers", **more)
        sites = [site for site in self._vectors.sites if site in CHOICES["site"]]  # neurons are not steered
        self.site = widgets.Dropdown(value=setting.site, options=sites, description="site", **more)
        self.op = widgets.Dropdown(value=setting.op, options=CHOICES["op"], description="op", **more)
        self.unit = widgets.Dropdown(value=setting.unit, options=CHOICES["unit"], description="unit", **more)
        self.control = widgets.Checkbox(True, description="random control", indent=False, layout={"width": "10em"})
        self._zero = widgets.Button(description="all to 0", layout={"width": "6em"})
        self._stop = widgets.Button(description="stop", disabled=True, layout={"width": "6em"})
        self._status = widgets.HTML()
        self._zero.on_click(lambda _: self._set(dict.fromkeys(self.sliders, 0.0)))
        self._stop.on_click(lambda _: self._cancel())
        self._inputs = [*self.sliders.values(), self.prompt, self.layers, self.site, self.op, self.unit, self.control]

    def _rows(self) -> list[widgets.Widget]:
        settings = widgets.VBox([self.layers, self.site, self.op, self.unit])
        wrap = widgets.Layout(flex_flow="row wrap", align_items="flex-start")
        buttons = widgets.HBox([self.control, self._zero, self._stop, self._status], layout={"align_items": "center"})
        return [
            self.prompt,
            widgets.HBox([widgets.VBox(list(self.sliders.values())), settings], layout=wrap),
            buttons,
        ]

    @property
    def steering(self) -> Steering | None:
        """What the controls say now; None where all doses are 0. Raises EmolabError for what makes no sense."""
        doses = {e: s.value for e, s in self.sliders.items() if s.value}
        if not doses:
            return None
        first, last = self.layers.value
        everywhere = (first, last) == (0, self._vectors.n_layers - 1)
        layers = "all" if everywhere else list(range(first, last + 1))
        setting = dataclasses.replace(
            self._setting, site=self.site.value, layers=layers, op=self.op.value, unit=self.unit.value
        )
        return Steering(self._vectors, doses, **vars(setting))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the texts are those of the controls; False where that took longer than `timeout` seconds."""
        return self._runs.wait(timeout)

    def close(self) -> None:
        """Stop writing and take the panel off the page."""
        self._runs.cancel()
        super().close()

    def _ipython_display_(self) -> None:
        """The controls, and below them the texts: an output of its own, which a saved notebook keeps without them."""
        display({**(self._repr_mimebundle_() or {}), "text/plain": "SteeringPanel"}, raw=True)
        self._output = display(self._texts(), raw=True, display_id=f"emolab-{self.model_id}")

    def _texts(self) -> dict[str, str]:
        return {"text/plain": "SteeringPanel", "text/html": self._html or self._status.value}

    def _changed(self, change: Any) -> None:
        if self._linking:
            return
        if change.owner in (self.op, self.unit):
            self._rescale()
        elif self.op.value == "ablate" and change.owner in self.sliders.values() and change.new:
            # One share for all of them: the others that are on follow.
            self._set({e: change.new for e, s in self.sliders.items() if s.value}, submit=False)
        self._submit()

    def _rescale(self) -> None:
        """Another op or unit: a number means something else then, so all start from 0."""
        self._set(dict.fromkeys(self.sliders, 0.0), submit=False)
        ablate = self.op.value == "ablate"
        top, step = _range(str(self.op.value), str(self.unit.value))
        self.unit.disabled = ablate
        self._linking = True
        if ablate:
            self.unit.value = "vector"
        for slider in self.sliders.values():
            slider.min, slider.max, slider.step = 0.0 if self.op.value in ("ablate", "cap") else -top, top, step
        self._linking = False

    def _set(self, values: dict[str, float], submit: bool = True) -> None:
        self._linking = True
        for emotion, value in values.items():
            self.sliders[emotion].value = value
        self._linking = False
        if submit:
            self._submit()

    def _submit(self) -> None:
        with self._runs.lock:
            self._runs.cancel()
            try:
                request = self._request()
            except EmolabError as error:
                self._say(error)
                return
            self._stop.disabled = False
            self._status.value = "writing …"
            self._runs.submit(request)

    def _cancel(self) -> None:
        with self._runs.lock:
            self._runs.cancel()
            self._stop.disabled = True
            self._status.value = "stopped; the texts are those of the setting above them"

    def _request(self) -> _Request:
        """The controls as they are: the worker reads no widget."""
        if not self.prompt.value.strip():
            raise EmolabError("the prompt is empty; write a question or a situation")
        steering = self.steering
        control = random_control(steering) if steering and self.control.value else None
        prompt = self.prompt.value
        return _Request(prompt, steering, control, code_line(prompt, steering, **self._options))

    def _run(self, request: _Request, number: int) -> None:
        self._number, self._tokens, self._told = number, 0, time.monotonic()
        error, note, texts = None, "", {}
        judged: dict[str, dict[str, float]] = {}
        try:
            texts = self._write(request)
            if self._judge is not None:
                try:
                    judged = judged_by(self._judge, texts, request.prompt)
                except Exception as failed:  # a judge is anybody's code; the texts are worth showing without it
                    note = f"no judge: {one_line(failed)}"
        except _Stale:
            return
        except Exception as failed:  # in a thread nobody else would hear of it
            error = failed
        with self._runs.lock:
            if self._runs.stale(number):
                return
            self._stop.disabled = True
            if error is not None:
                self._say(error)
                return
            self.texts, self.probabilities = texts, judged
            self._status.value = ""
            name = getattr(self._judge, "name", "judge")
            self._html = answers(request.code, texts, judged, note or f"bars: judge “{name}”" * bool(judged))
            if self._output is not None:
                self._output.update(self._texts(), raw=True)

    def _write(self, request: _Request) -> dict[str, str]:
        steerings = {"unsteered": None, "steered": request.steering, "random": request.control}
        known = self._plain.get(request.prompt)
        todo = [k for k, s in steerings.items() if s is not None or (k == "unsteered" and known is None)]
        texts = {} if known is None else {"unsteered": known}
        if todo:
            rows = [steerings[k] for k in todo]
            with no_progress():
                written = generate(self._model, [request.prompt] * len(todo), steering=rows, **self._options)
            texts |= dict(zip(todo, written, strict=True))
        self._plain = {request.prompt: texts["unsteered"]}
        return {k: texts[k] for k in steerings if k in texts}

    def _tick(self, module: Any, args: Any) -> None:
        """Before each token: stop where nobody waits for the text, and say how far it is."""
        if self._runs.stale(self._number):
            raise _Stale
        self._tokens += 1
        if time.monotonic() - self._told > 0.5:
            self._told = time.monotonic()
            with self._runs.lock:
                if not self._runs.stale(self._number):
                    self._status.value = f"writing, token {self._tokens} of at most {self._options['max_new_tokens']}"

    def _say(self, error: Exception) -> None:
        self._stop.disabled = True
        self._status.value = f'<span role="alert" style="color:#D55E00">⚠ {escape(one_line(error))}</span>'
