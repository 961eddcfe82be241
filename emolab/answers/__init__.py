"""Questions and texts in, answers out: bundled data, generation, log-probabilities, responses."""

from __future__ import annotations

from emolab.base.lazy import offer

_PUBLIC = {
    "Writing": "answers.writing",
    "collect_responses": "answers.responses",
    "generate": "answers.generation",
    "go_on": "answers.generation",
    "load_queries": "answers.queries",
    "load_ratings": "answers.texts",
    "load_texts": "answers.texts",
    "next_token_kl": "answers.logprobs",
    "p95_kl": "answers.logprobs",
    "responses_from_texts": "answers.responses",
    "token_logprobs": "answers.logprobs",
}
__getattr__, __dir__, __all__ = offer(__name__, _PUBLIC)
