"""Dials: a slider for the dose of each emotion, a pad for valence and arousal, and the setting, folded away."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from emolab.base.errors import EmolabError
from emolab.base.labels import styles
from emolab.models.model import Model
from emolab.steering.settings import CHOICES, Setting
from emolab.steering.steering import Steering, as_rows
from emolab.vectors.vectors import EmotionVectors

# Largest dose of the sliders and their step, by op and unit.
_RANGES = {"vector": (3.0, 0.05), "residual": (0.5, 0.01), "breaking": (3.0, 0.05), "ablate": (1.0, 0.05)}
AXES = ("valence", "arousal")  # that have a pad where vectors hold both


def _range(op: str, unit: str) -> tuple[float, float]:
    return _RANGES["ablate" if op == "ablate" else unit]


class _Pad(anywidget.AnyWidget):
    """A point in a square, from -top to top."""

    _esm = Path(__file__).with_name("pad.js")
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    x = traitlets.Float().tag(sync=True)
    y = traitlets.Float().tag(sync=True)
    top = traitlets.Float(3.0).tag(sync=True)


class Dials(widgets.HBox):
    """The dials of a chat; `steering` is what they say, `moved` is called when one was moved by hand.

    >>> dials = Dials(model, vectors, {"joy": 1.0}, emolab.Setting(site="attn"), moved=lambda: None)
    >>> dials.sliders["joy"].value, dials.steering.site
    (1.0, 'attn')

    Raises EmolabError as `Steering`, for vectors of another model, and for layers that are not neighbours.
    """

    def __init__(
        self,
        model: Model,
        vectors: EmotionVectors,
        doses: dict[str, float],
        setting: Setting,
        moved: Callable[[], Any],
    ) -> None:
        start = Steering(vectors, doses or {vectors.emotions[0]: 0.0}, **vars(setting))
        as_rows(model, start)
        span = sorted(start.layer_numbers)
        if span != list(range(span[0], span[-1] + 1)):
            raise EmolabError(
                f'layers are {setting.layers}; the dials steer "all" or neighbouring layers, such as [2, 3, 4]'
            )
        self._vectors, self._setting, self._moved, self._quiet = vectors, setting, moved, False
        name = min(20, max(5.5, 0.65 * max(map(len, vectors.emotions))))  # em, for the longest label
        looks, (top, step) = styles(vectors.emotions), _range(setting.op, setting.unit)
        top = max([top, *map(abs, doses.values())])
        self.sliders = {
            e: widgets.FloatSlider(
                doses.get(e, 0.0), min=-top, max=top, step=step, description=e, readout_format="+.2f",
                layout={"width": f"{18 + name}em"},
                style={"description_width": f"{name}em", "handle_color": looks[e][0]},
            )
            for e in vectors.emotions
        }  # fmt: skip
        more = {"style": {"description_width": "4em"}, "layout": {"width": "20em"}}
        last = vectors.n_layers - 1
        self.layers = widgets.IntRangeSlider(value=(span[0], span[-1]), min=0, max=last, description="layers", **more)
        sites = [site for site in vectors.sites if site in CHOICES["site"]]  # neurons are not steered
        self.site = widgets.Dropdown(value=setting.site, options=sites, description="site", **more)
        self.op = widgets.Dropdown(value=setting.op, options=CHOICES["op"], description="op", **more)
        self.unit = widgets.Dropdown(value=setting.unit, options=CHOICES["unit"], description="unit", **more)
        where = [self.layers, self.site, self.op, self.unit]
        folded = widgets.Accordion([widgets.VBox(where)], titles=("setting",), selected_index=None)
        rows: list[widgets.Widget] = [widgets.VBox(list(self.sliders.values())), folded]
        if all(axis in self.sliders for axis in AXES):
            rows.insert(1, self._pad())
        super().__init__(rows, layout=widgets.Layout(flex_flow="row wrap", align_items="flex-start"))
        for widget in (*self.sliders.values(), *where):
            widget.observe(self._changed, "value")

    def _pad(self) -> _Pad:
        x, y = (self.sliders[axis] for axis in AXES)
        pad = _Pad(names=list(AXES), x=x.value, y=y.value, top=x.max)
        for source, trait in (((x, "value"), "x"), ((y, "value"), "y"), ((x, "max"), "top")):
            traitlets.link(source, (pad, trait))
        return pad

    @property
    def steering(self) -> Steering | None:
        """What the dials say now; None where all doses are 0. Raises EmolabError for what makes no sense."""
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

    def zero(self) -> None:
        """All doses to 0, as one move."""
        self._set(dict.fromkeys(self.sliders, 0.0))
        self._moved()

    def _changed(self, change: Any) -> None:
        if self._quiet:
            return
        if change.owner in (self.op, self.unit):
            self._rescale()
        elif self.op.value == "ablate" and change.owner in self.sliders.values() and change.new:
            # One share for all of them: the others that are on follow.
            self._set({e: change.new for e, s in self.sliders.items() if s.value})
        self._moved()

    def _rescale(self) -> None:
        """Another op or unit: a number means something else then, so all start from 0."""
        self._set(dict.fromkeys(self.sliders, 0.0))
        ablate = self.op.value == "ablate"
        top, step = _range(str(self.op.value), str(self.unit.value))
        self.unit.disabled = ablate
        with self._quietly():
            if ablate:
                self.unit.value = "vector"
            for slider in self.sliders.values():
                slider.min, slider.max, slider.step = 0.0 if self.op.value in ("ablate", "cap") else -top, top, step

    def _set(self, values: dict[str, float]) -> None:
        with self._quietly():
            for emotion, value in values.items():
                self.sliders[emotion].value = value

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        """Values that follow from others are no moves of their own."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False
