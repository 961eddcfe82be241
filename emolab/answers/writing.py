"""How answers are asked for and written, one object wherever that is: greedy, with a repetition penalty, by default."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from emolab.base.errors import EmolabError, need_number, need_texts, shown


@dataclass(frozen=True, repr=False)
class Writing:
    """How answers are asked for, and how each next token is chosen.

    >>> emolab.generate(model, "Tell me about the park.", writing=Writing(temperature=0.7, top_p=0.9, seed=1))
    >>> Writing(temperature=0.7, top_p=0.9).greedy, Writing(batch_size=8) == Writing()
    (False, True)

    temperature         0 is greedy, the likeliest token; then top_p and seed play no part. Above 0: sampling.
    top_p               sampling from the likeliest tokens that together have this probability, above 0 to 1.
    repetition_penalty  1 is none. Logits of the tokens that a row holds already are divided by it (times it where
                        negative), as in CTRL (arXiv 1909.05858) and in transformers: each token once, of the prompt and
                        of the answer, its end-of-turn tokens too. Padding does not count, which in transformers it
                        does: so a row is written in a batch as it is alone.
    seed                of sampling, and of whatever else is drawn, such as the controls of a sweep.
    batch_size          rows that are written together; None: as many as fit (`plan_batches`). Greedy texts do not
                        depend on it, and it is no part of equality; sampled ones do.
    templates           {condition: wording with "{query}"}, such as {"neutral": "{query}", "joy": "Be glad. {query}"}:
                        the user turn of each condition, in place of the package's (`render_prompts`).
    forbidden           words that are never written, such as ("joy", "joyful"): as they stand, and with a capital.

    The default penalty, 1.1, keeps a small model from greedy loops: SmolLM2-135M repeats 2 % of its words instead of
    16 %. Perplexities are read without it. Raises EmolabError for a number outside its bounds.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.1
    seed: int = 0
    batch_size: int | None = field(default=None, compare=False)
    templates: dict[str, str] | None = field(default=None, hash=False)
    forbidden: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        need_number("temperature", self.temperature, 0)
        need_number("top_p", self.top_p, 0, 1)
        if not self.top_p:
            raise EmolabError("top_p is 0; expected a number above 0, up to 1")
        need_number("repetition_penalty", self.repetition_penalty, 1)
        need_number("seed", self.seed, whole=True)
        need_texts("forbidden words", self.forbidden, filled=True)
        if self.batch_size is not None:
            need_number("batch_size", self.batch_size, 1, whole=True)

    def __repr__(self) -> str:
        """Only what is not the default, as one would write it."""
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"Writing({', '.join(changed)})"

    @property
    def greedy(self) -> bool:
        return not self.temperature

    def chunk(self, number: int) -> Writing:
        """The same for one part of many texts, with a stream of random numbers of its own."""
        return self if self.greedy else replace(self, seed=self.seed + 1000 * number)

    def settings(self) -> dict[str, Any]:
        """What a text depends on, to be kept beside it: of greedy ones the penalty, and the templates where given.

        >>> Writing(seed=3, batch_size=8).settings()
        {'temperature': 0.0, 'repetition_penalty': 1.1}
        """
        settings: dict[str, Any] = {"temperature": float(self.temperature)}
        if not self.greedy:
            settings["top_p"] = float(self.top_p)
        settings["repetition_penalty"] = float(self.repetition_penalty)
        if not self.greedy:  # a batch draws from one stream of numbers
            settings |= {"seed": self.seed, "batch_size": self.batch_size}
        if self.templates is not None:
            settings["templates"] = dict(self.templates)
        if self.forbidden:
            settings["forbidden"] = list(self.forbidden)
        return settings


def need_writing(writing: Any) -> None:
    """Raise EmolabError unless `writing` is a Writing; a temperature alone is the usual mistake."""
    if not isinstance(writing, Writing):
        raise EmolabError(f"writing is {shown(writing)}; expected emolab.Writing(temperature=..., top_p=...)")
