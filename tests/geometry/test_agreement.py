"""How published vectors agree with one's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emolab.base.errors import EmolabError
from emolab.geometry import similarity
from emolab.vectors.vectors import EmotionVectors


def made(x, emotions=("anger", "joy"), site="attn"):
    return EmotionVectors({site: torch.as_tensor(x)}, emotions, torch.zeros(x.shape[1]), {"model": "m"})


def test_agreement_is_the_cosine_of_like_with_like_beside_unlike():
    e = np.eye(4)
    ours = made(np.stack([[e[0], e[0]], [e[1], e[1]]]))
    theirs = made(np.stack([[3 * e[1], e[2]], [2 * e[0], e[0]], [e[3], e[0] + e[1]]]), ("joy", "anger", "calm"))
    table = similarity.vector_agreement(ours, theirs, site="attn").set_index(["emotion", "layer"])
    assert table["cosine"].to_dict() == {("anger", 0): 1, ("anger", 1): 1, ("joy", 0): 1, ("joy", 1): 0}
    assert table["mismatched"].to_dict() == {("anger", 0): 0, ("anger", 1): 0, ("joy", 0): 0, ("joy", 1): 0}
    assert (table["random"] == 0.98).all()
    specific = similarity.vector_agreement(ours, theirs, site="attn", part="specific").set_index(["emotion", "layer"])
    np.testing.assert_allclose(specific.loc["anger", "mismatched"].loc[0], -5 / 26**0.5)
    lone = similarity.vector_agreement(ours, made(theirs.get("attn")[:1], ("joy",)), site="attn")
    assert list(lone["emotion"].unique()) == ["joy"] and lone["mismatched"].isna().all()
    shifted = made(ours.get("attn") + 5 * torch.tensor(e[3]))
    assert similarity.vector_agreement(ours, shifted, site="attn")["cosine"].max() < 0.2
    agreement = similarity.vector_agreement(ours, shifted, site="attn", part="specific")
    np.testing.assert_allclose(agreement["cosine"], 1, atol=1e-6)


def test_agreement_needs_something_in_common():
    ours = made(np.ones((2, 3, 4)))
    for other in (made(np.ones((2, 3, 4)), ("calm", "hope")), made(np.ones((2, 2, 4))), made(np.ones((2, 3, 5)))):
        with pytest.raises(EmolabError, match="cannot compare"):
            similarity.vector_agreement(ours, other, site="attn")
    with pytest.raises(EmolabError, match="no site 'resid'"):
        similarity.vector_agreement(ours, ours)
    with pytest.raises(EmolabError, match='part must be "whole" or "specific"'):
        similarity.vector_agreement(ours, ours, site="attn", part="shared")
