"""Names are imported when they are asked for, and nothing looks for garbage meanwhile."""

import gc

import pytest

from emolab.base import lazy


@pytest.mark.parametrize("on", [True, False])
def test_collecting_goes_on_as_before(on, monkeypatch):
    seen = []

    def load(name):
        seen.append(gc.isenabled())
        raise ImportError(name)

    monkeypatch.setattr(lazy.importlib, "import_module", load)
    was_on = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        with pytest.raises(ImportError):
            lazy.on_use("emolab.base", {"shown": "base.errors"})("shown")
        assert gc.isenabled() is on and seen == [False]
    finally:
        (gc.enable if was_on else gc.disable)()
