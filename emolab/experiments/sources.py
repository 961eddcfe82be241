"""Sources of vectors, and an instruction, where their effect is the same: at equal doses they push differently hard."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from emolab.base.errors import EmolabError
from emolab.experiments.headline import instructed_answers, is_hit, is_unsteered

_MEASURES = ("target", "blind", "adherence", "repetition", "named", "refusal")


def equal_effect(scored: Mapping[str, pd.DataFrame], instructed: pd.DataFrame) -> pd.DataFrame:
    """Each source at the dose whose share on target is nearest to that of the instruction.

    >>> equal_effect({"own answers": scored, "frames": of_frames}, instructed)[["alpha", "target", "adherence_kept"]]

    scored: {source: a scored sweep of one setting}; instructed: scored answers under instruction, to the same
    questions. Rows are the sources and "instruction"; columns `alpha`, the means over texts `target`, `blind` (the
    target's share by a `BlindJudge`, where it has read them), `adherence`, `repetition`, `named`, `refusal`, the number
    `n` of texts, and `adherence_kept`, the adherence over that of unsteered texts. Raises EmolabError without steered
    and unsteered rows.
    """
    answers = instructed_answers(instructed)
    aim = float(is_hit(answers).mean())
    rows, plain = {}, []
    for source, table in scored.items():
        unsteered = is_unsteered(table)
        steered = table[~unsteered & (table["control"] == "none")]
        if steered.empty or not unsteered.any():
            raise EmolabError(f"{source!r} holds no steered and unsteered texts; sweep with alphas=(0, ...)")
        plain.append(table[unsteered])
        share = is_hit(steered).groupby(steered["alpha"]).mean()
        alpha = float((share - aim).abs().idxmin())
        rows[source] = {"alpha": alpha, **_means(steered[steered["alpha"] == alpha])}
    rows["instruction"] = {"alpha": float("nan"), **_means(answers)}
    table = pd.DataFrame(rows).T.rename_axis("source")
    return table.assign(adherence_kept=table["adherence"] / pd.concat(plain)["adherence"].mean())


def _means(texts: pd.DataFrame) -> dict[str, float]:
    texts = texts.assign(target=is_hit(texts))
    if "blind_top" in texts:
        texts = texts.assign(blind=texts["blind_top"] == texts["emotion"])
    means = {m: float(texts[m].astype(float).mean()) for m in _MEASURES if m in texts}
    return means | {"n": len(texts)}
