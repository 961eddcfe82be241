"""Interactive views for notebooks: a chat with dials, a steering panel, coloured tokens, a map of heads to click on.

>>> from emolab.widgets import Chat, SteeringPanel, head_view, token_view
>>> Chat(model, vectors, setting=emolab.Setting(site="attn"), doses={"joy": 1.25})
>>> SteeringPanel(model, vectors, setting=emolab.Setting(site="attn"), doses={"joy": 1.25})
>>> token_view(model, "What a lovely day!", vectors, emotion="joy")
>>> head_view(effects)                                                # from emolab.head_effects

Chat and panel need a live kernel; a notebook opened without one shows what they last wrote. The two views are HTML that
carries its own numbers: they work without a kernel, and where scripts are not run they stand still.
Whatever a model or a user wrote is escaped.
"""

from __future__ import annotations

from emolab.widgets.chat import Chat, SteeringPanel
from emolab.widgets.heads import head_view
from emolab.widgets.tokens import token_projections, token_view

__all__ = ["Chat", "SteeringPanel", "head_view", "token_projections", "token_view"]
