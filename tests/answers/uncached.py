"""Generation without a cache: every token's past is worked out anew, so that no cache can be at fault."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from emolab.answers import generation


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Inside, `generate` keeps nothing of what it has read."""
    configured, edits_of = generation.generation_config, generation.edits_of

    def config(*args):
        told = configured(*args)
        told.use_cache = False
        return told

    with (
        mock.patch.object(generation, "opened", lambda model, batch, early: (batch, None)),
        mock.patch.object(generation, "generation_config", config),
        mock.patch.object(generation, "edits_of", lambda *args, cached: edits_of(*args, cached=False)),
    ):
        yield
