"""What every room uses: errors, labels and their colours, files that are whole or absent, intervals, tables."""

from __future__ import annotations

from emolab.base.lazy import on_use

__getattr__ = on_use(__name__, {})
