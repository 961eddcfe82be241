"""How much a study asks: its questions, what it tries, what it compares.

>>> from dataclasses import replace
>>> emolab.study("smollm2", out="runs/x", plan=replace(FULL, methods=()))           # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emolab.experiments import selection
from emolab.experiments.selection import Search


@dataclass(frozen=True)
class Plan:
    """How much a study asks: FULL and QUICK are two of them; `dataclasses.replace(FULL, methods=())` is another.

    n_queries       questions to extract vectors from (training), to choose wording, setting and doses with (training,
                    of other situations), and to report on (held out).
    n_evoking       held-out questions that evoke an emotion themselves: can a vector turn it round?
    max_new_tokens  of every answer.
    search          what `selection.select` tries; its doses, in breaking alphas, are those of the report, too.
    wordings        whether wordings of the instruction are tried, or "Answer with joy." is taken; or the name of one
                    (`experiments.templates_of`), with which studies of two models ask alike.
    n_claims        questions on which the paper's claims are put to the test; 0 leaves them out.
    methods         what the vectors are compared with (`comparison.METHODS`); () for nothing. None: all, but LoRA
                    only for models of up to 50 million parameters, since it would cost more than all the rest.
    quick           fewer heads and questions where heads are put to causal tests.
    """

    n_queries: tuple[int, int, int] = (40, 12, 16)
    n_evoking: int = 10
    max_new_tokens: int = 60
    search: Search = Search()
    wordings: bool | str = True
    n_claims: int = 4
    methods: Sequence[str] | None = ("instruction", "few_shot", "emotion vector", "probe", "random")
    quick: bool = False


FULL = Plan()
QUICK = Plan(
    n_queries=(36, 8, 8), n_evoking=0, max_new_tokens=32, search=selection.QUICK, n_claims=0, methods=(), quick=True
)  # fmt: skip
