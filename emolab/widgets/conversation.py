"""A conversation whose answers are written side by side, steered and not, and what was read of each token meanwhile.

>>> talk = Conversation(model, vectors, max_new_tokens=8)
>>> turn = Turn("Hi!", {"unsteered": Answer(talk.prompt("Hi!", "unsteered", []), None)})
>>> talk.write(turn, ["unsteered"], each=lambda: None)
>>> len(turn.answers["unsteered"].ids), turn.answers["unsteered"].scores.shape            # [token, emotion]
(8, (8, 5))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from emolab.answers.generation import stream
from emolab.answers.texts import load_texts
from emolab.answers.writing import Writing
from emolab.base.labels import NEUTRAL
from emolab.base.progress import no_progress
from emolab.base.tables import noted
from emolab.models.model import Model
from emolab.models.prompts import encode, render_conversation, render_prompts
from emolab.steering.along import need_readable, read_along
from emolab.steering.steering import Steering
from emolab.vectors.vectors import EmotionVectors

OTHERS = 5  # tokens that might have stood in the place of one


@dataclass
class Answer:
    """One answer: its ids, each one's piece of the text, what was read where it was chosen, and what else might stand.

    scores: the projection on each emotion's vector at the token before, in standard deviations of neutral text.
    others: the likeliest other tokens in each one's place, [(id, piece, probability)].
    """

    prompt: str
    steering: Steering | None
    ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    scores: Float[np.ndarray, "token emotion"] = field(default_factory=lambda: np.empty((0, 0)))
    others: list[list[tuple[int, str, float]]] = field(default_factory=list)
    forced: dict[int, str] = field(default_factory=dict)  # pieces that a reader chose, by place
    begun: int = 0  # tokens that it went on from

    @property
    def text(self) -> str:
        return "".join(self.pieces).strip()


@dataclass
class Turn:
    """What was asked, and an answer for each arm: "steered", "unsteered", "random"."""

    asked: str
    answers: dict[str, Answer] = field(default_factory=dict)
    judged: dict[str, dict[str, float]] = field(default_factory=dict)
    note: str = ""  # what is said below them

    @property
    def main(self) -> Answer:
        """The steered answer, or the unsteered one where nothing was steered."""
        return self.answers.get("steered") or self.answers["unsteered"]


class Conversation:
    """Turns, each arm of which goes on from its own earlier answers.

    Tokens are read at `site` of the layer that `place` gives: in the residual stream below the first steered layer,
    where the state depends on the words alone; where this is one of the first third, in the middle of the model, behind
    what steering did. They are scored as the specific part of the vectors lies in them, less the mean of neutral texts,
    in their standard deviations.
    """

    def __init__(
        self, model: Model, vectors: EmotionVectors, *, max_new_tokens: int = 80, writing: Writing = Writing()
    ) -> None:
        self.model, self.vectors = model, vectors
        self.max_new_tokens, self.writing = max_new_tokens, writing
        self.turns: list[Turn] = []
        self.site = "resid" if "resid" in vectors.sites else next(s for s in vectors.sites if s != "head")
        several = len(vectors.emotions) > 1
        self._read = vectors.part("specific") if several and vectors.meta.get("part", "whole") == "whole" else vectors
        self._norms: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # of neutral text, by layer

    @property
    def emotions(self) -> tuple[str, ...]:
        return self._read.emotions

    def place(self, steering: Steering | None) -> tuple[int, bool]:
        """The layer that is read, and whether it lies above the first steered one."""
        first = min(steering.layer_numbers) if steering is not None else self.vectors.n_layers
        below = first - 1
        if 3 * below >= self.vectors.n_layers:
            return min(below, self.vectors.n_layers // 2), False
        return self.vectors.n_layers // 2, True

    def prompt(self, asked: str, arm: str, before: list[Turn]) -> str:
        """The complete prompt of a query behind the arm's answers in the turns before (or the first arm's)."""
        if not before:
            return render_prompts(self.model, [asked], templates=self.writing.templates)[0]
        said = [(turn.asked, (turn.answers.get(arm) or next(iter(turn.answers.values()))).text) for turn in before]
        return render_conversation(self.model, said, asked)

    def write(self, turn: Turn, arms: list[str], each: Callable[[], None]) -> None:
        """Write what is missing of these arms of a turn, as one batch; `each` is called before every token."""
        answers = [turn.answers[arm] for arm in arms]
        layer, _ = self.place(next((a.steering for a in answers if a.steering is not None), None))
        mean, spread = self._neutral(layer)
        unit = torch.nn.functional.normalize(self._read.get(self.site, layer=layer).double(), dim=-1, eps=1e-30)
        state: list[np.ndarray] = []

        def read(x: torch.Tensor) -> None:
            dots = x[:, -1].detach().to("cpu").double() @ unit.T
            state[:] = [(dots.numpy() - mean) / spread]

        ended = [False] * len(answers)

        def told(ids: torch.Tensor, scores: torch.Tensor) -> None:
            for row, (answer, before, new) in enumerate(zip(answers, begun, ids.tolist(), strict=True)):
                ended[row] = ended[row] or bool(new and new[-1] in ends)
                if not ended[row]:
                    self._set(answer, [*before, *new])
            probabilities = scores.float().softmax(-1).topk(OTHERS + 1)
            for row, answer in enumerate(answers):
                if not ended[row]:
                    answer.scores = np.vstack([answer.scores.reshape(-1, unit.shape[0]), state[0][row]])
                    likely = zip(probabilities.indices[row].tolist(), probabilities.values[row].tolist(), strict=True)
                    answer.others.append([(i, self.model.tokenizer.decode([i]), p) for i, p in likely])
            each()

        begun = [list(answer.ids) for answer in answers]
        ends = set(self.model.eos_ids)
        with no_progress():
            written = stream(
                self.model, [a.prompt for a in answers], steering=[a.steering for a in answers], begun=begun,
                each=told, reads=[((self.site, layer), read)], max_new_tokens=self.max_new_tokens,
                writing=self.writing,
            )  # fmt: skip
        for answer, ids in zip(answers, written, strict=True):
            self._set(answer, ids)
            answer.scores, answer.others = answer.scores[: len(ids)], answer.others[: len(ids)]
            answer.others = [
                [other for other in others if other[0] != chosen][:OTHERS]
                for others, chosen in zip(answer.others, ids, strict=True)
            ]

    def forked(self, answer: Answer, token: int, instead: int | None = None) -> Answer:
        """An answer up to a token, with another one in its place (None: it is chosen anew)."""
        ids = [*answer.ids[:token], *([] if instead is None else [instead])]
        n = len(ids)
        kept = Answer(answer.prompt, answer.steering, scores=answer.scores[:n], others=answer.others[:n], begun=n)
        self._set(kept, ids)
        chosen = {} if instead is None else {token: kept.pieces[token]}
        kept.forced = {place: piece for place, piece in answer.forced.items() if place < token} | chosen
        return kept

    def by_layer(self, answer: Answer, token: int) -> pd.DataFrame:
        """The scores of every layer where a token was chosen: `layer, emotion, score`, from one pass, unsteered."""
        layers = need_readable(self.model, self._read, site=self.site, layers="all")
        batch = encode(self.model, [answer.prompt], [answer.ids[:token]])
        dots, _ = read_along(self.model, self._read, batch, site=self.site, layers=layers, n=1, plain=None)
        rows = []
        for place, layer in enumerate(layers):
            mean, spread = self._neutral(layer)
            scores = (dots[0, 0, place] - mean) / spread
            rows += [(layer, emotion, score) for emotion, score in zip(self.emotions, scores, strict=True)]
        return pd.DataFrame(rows, columns=["layer", "emotion", "score"])

    def _neutral(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each emotion's projection over the tokens of ten neutral texts, by layer."""
        if not self._norms:
            texts = load_texts("topics", split="heldout", labels=[NEUTRAL])["text"].tolist()
            prompts = render_prompts(self.model, ["Tell me about it."]) * len(texts)
            layers = need_readable(self.model, self._read, site=self.site, layers="all")
            batch = encode(self.model, prompts, texts)
            n = batch.input_ids.shape[1] - batch.prompt_len
            dots, _ = read_along(self.model, self._read, batch, site=self.site, layers=layers, n=n)
            counted = batch.response_mask[:, -n:].cpu().numpy()
            neutral = dots[counted]  # [token, layer, emotion]
            self._norms = {
                number: (neutral[:, i].mean(0), neutral[:, i].std(0).clip(1e-6)) for i, number in enumerate(layers)
            }
        return self._norms[layer]

    def _set(self, answer: Answer, ids: list[int]) -> None:
        """The ids, and what each adds to the text: several can make up one letter, which the last of them brings."""
        same = 0
        while same < min(len(ids), len(answer.ids)) and ids[same] == answer.ids[same]:
            same += 1
        pieces = answer.pieces[:same]
        for end in range(same + 1, len(ids) + 1):
            whole = self.model.tokenizer.decode(ids[:end], skip_special_tokens=True)
            before = "".join(pieces)
            pieces.append("" if whole.endswith("\ufffd") else whole[len(before) :])
        answer.ids, answer.pieces = ids, pieces

    def scores(self) -> pd.DataFrame:
        """One row for each token and emotion: `turn, arm, position, token, emotion, score`."""
        rows = [
            (number, arm, position, piece, emotion, score)
            for number, turn in enumerate(self.turns)
            for arm, answer in turn.answers.items()
            for position, (piece, values) in enumerate(zip(answer.pieces, answer.scores, strict=False))
            for emotion, score in zip(self.emotions, values, strict=True)
        ]
        table = pd.DataFrame(rows, columns=["turn", "arm", "position", "token", "emotion", "score"])
        return noted(table, self.model, n=f"{len(self.turns)} turns", params={"site": self.site, "part": "specific"})
