"""Words that tables use for all emotions together are no labels of one."""

from __future__ import annotations

import pytest

import emolab
from emolab.base.errors import EmolabError


@pytest.mark.parametrize("word", ["all", "mean", "shared"])
def test_a_label_that_means_all_is_refused_before_anything_is_written(tiny_llama, word):
    with pytest.raises(EmolabError, match=rf"has the label '{word}' \(row 1\), which in tables means all; rename it"):
        emolab.responses_from_texts({"joy": ["so glad"], word: ["so bright"]})
    with pytest.raises(EmolabError, match=rf"emotions has the label '{word}' \(row 1\)"):
        emolab.collect_responses(tiny_llama, ["how was it ?"], emotions=["joy", word], max_new_tokens=1)
