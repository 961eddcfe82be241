"""What the chat works with: a thread that does what was asked for last, a model of its own, a control."""

from __future__ import annotations

import contextvars
import copy
import dataclasses
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from emolab.models.model import Model
from emolab.steering.steering import Steering
from emolab.vectors.controls import random_like
from emolab.vectors.vectors import EmotionVectors


class Latest:
    """Calls `work(request, number)` in a thread, when the request's `delay` in seconds has brought no newer one.

    A thread rather than an asyncio task, because there is no loop to rely on: JupyterLab sends the messages of widgets
    to a subshell, whose handlers run in a thread with a loop of its own, other front ends to the main thread, which
    is busy while a cell runs, and a script has no loop at all. Work that lasts asks `stale(number)` and leaves; the
    newer request waits for that, so never two run at a time. What a worker shows, it shows while holding `lock` and
    not stale: then nothing old can follow something new.
    """

    def __init__(self, work: Callable[[Any, int], None]) -> None:
        self._work = work
        self.lock = threading.Condition(threading.RLock())
        self._number = 0  # of the newest request
        self._request: tuple[Any, float] | None = None
        self._busy = False
        self._thread: threading.Thread | None = None

    def submit(self, request: Any, delay: float) -> None:
        """Ask for work; what was asked before, begun or not, is dropped."""
        with self.lock:
            self._number += 1
            self._request = request, time.monotonic() + delay
            if self._thread is None or not self._thread.is_alive():
                # In the context of who asks: ipykernel 7.0.0 sends nothing of a widget from a thread without it.
                loop = functools.partial(contextvars.copy_context().run, self._loop)
                self._thread = threading.Thread(target=loop, daemon=True, name="emolab-widget")
                self._thread.start()
            self.lock.notify_all()

    def cancel(self) -> None:
        """Drop what was asked for, begun or not. The thread ends once it has nothing to do."""
        with self.lock:
            self._number += 1
            self._request = None
            self.lock.notify_all()

    def stale(self, number: int) -> bool:
        return number != self._number

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is left to do; False where that took longer than `timeout` seconds."""
        with self.lock:
            return self.lock.wait_for(lambda: self._request is None and not self._busy, timeout)

    def _loop(self) -> None:
        while True:
            with self.lock:
                while self._request is not None and (left := self._request[1] - time.monotonic()) > 0:
                    self.lock.wait(left)
                if self._request is None:
                    self._thread = None
                    return
                (request, _), self._request = self._request, None
                self._busy, number = True, self._number
            try:
                self._work(request, number)
            finally:
                with self.lock:
                    self._busy = False
                    self.lock.notify_all()


def own_copy(model: Model) -> Model:
    """Other modules over the same weights, without hooks: neither side ever sees what the other steers."""
    parts = (model.bridge, model.hf, model.tokenizer)
    modules = [m for root in (model.hf, model.bridge, model.bridge.original_model) for m in root.modules()]
    # Weights, buffers, and what a module keeps of its last call, which may hang on a graph and cannot be copied.
    tensors = [t for m in modules for t in (*m.parameters(False), *m.buffers(False), *vars(m).values())]
    bridge, hf, tokenizer = copy.deepcopy(parts, {id(t): t for t in tensors if isinstance(t, torch.Tensor)})
    for point in bridge.hook_dict.values():
        point.remove_hooks("both")
    tokenizer.model_max_length = 10**9  # too long a prompt is our own error, not a warning besides
    return dataclasses.replace(model, bridge=bridge, hf=hf, tokenizer=tokenizer)


def random_control(steering: Steering) -> Steering:
    if steering.op != "add":
        return dataclasses.replace(steering, vectors=random_like(steering.vectors))
    added = steering.table()  # for a mixture the sum counts, which random vectors of equal norms would not match
    site = "attn" if steering.site == "head" else steering.site
    like = EmotionVectors({site: added[None]}, ("random",), steering.vectors.resid_norm, {})
    options = {"site": site, "layers": steering.layers}
    return Steering(dataclasses.replace(random_like(like), meta=steering.vectors.meta), {"random": 1.0}, **options)
