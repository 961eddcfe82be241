"""Questions and texts in, answers out: bundled data, generation, log-probabilities, responses."""

from __future__ import annotations

from emolab.base.lazy import on_use

_PUBLIC = {
    "Writing": "answers.writing",
    "collect_responses": "answers.responses",
    "generate": "answers.generation",
    "load_queries": "answers.queries",
    "load_ratings": "answers.texts",
    "load_texts": "answers.texts",
    "next_token_kl": "answers.logprobs",
    "p95_kl": "answers.logprobs",
    "responses_from_texts": "answers.responses",
    "token_logprobs": "answers.logprobs",
}
__all__ = sorted(_PUBLIC)
__getattr__ = on_use(__name__, _PUBLIC, __all__)


def __dir__() -> list[str]:
    return __all__
