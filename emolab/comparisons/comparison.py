"""What is compared: the vectors of a model at a setting, and where the results are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emolab.base.errors import EmolabError, need_model, need_number, need_vectors, shown
from emolab.base.storage import user_path
from emolab.experiments.sweeps import vectors_identity
from emolab.models.model import Model
from emolab.steering.settings import Setting
from emolab.vectors.vectors import EmotionVectors


@dataclass(frozen=True, eq=False)
class Comparison:
    """The vectors of a model at a setting, which other methods, controls or claims are set beside.

    >>> comparison = Comparison(model, vectors, Setting(site="attn", layers="late"), out="runs/x")
    >>> table = emolab.compare_methods(comparison, responses, queries_select, queries_report)
    >>> claims = emolab.check_claims(comparison, queries, tested, scored)

    setting  where to steer; of several, `compare_methods` takes the best one. Vectors are added, in multiples of their
             own length: op "add", unit "vector".
    seed     of random directions, drawn examples, training and intervals.
    out      a folder that keeps what is made, or None.

    Raises EmolabError for a setting of another kind.
    """

    model: Model
    vectors: EmotionVectors
    setting: Setting | Sequence[Setting] = (Setting(site="attn"), Setting(site="resid"))
    seed: int = 0
    out: str | Path | None = None

    def __post_init__(self) -> None:
        need_model(self.model)
        need_vectors(self.vectors)
        need_number("seed", self.seed, whole=True)
        if not self.settings or not all(isinstance(setting, Setting) for setting in self.settings):
            raise EmolabError(f"setting is {shown(self.setting)}; expected emolab.Setting(site=...), or a list of them")
        odd = [setting for setting in self.settings if (setting.op, setting.unit) != ("add", "vector")]
        if odd:
            raise EmolabError(f'{odd[0]} is no setting to compare at; expected op "add" and unit "vector"')

    @property
    def settings(self) -> list[Setting]:
        return [self.setting] if isinstance(self.setting, Setting) else list(self.setting or ())

    @property
    def folder(self) -> Path | None:
        return None if self.out is None else user_path(self.out)

    def path(self, name: str) -> Path | None:
        """The parquet file of this name in the folder; None where nothing is kept."""
        return None if self.folder is None else self.folder / f"{name}.parquet"

    def identity(self) -> dict[str, Any]:
        """What tells results with these vectors from others, for the files on disk."""
        origin = {"model": self.model.name, "fingerprint": self.model.fingerprint}
        return {**origin, "vectors": vectors_identity(self.vectors), "seed": self.seed}
