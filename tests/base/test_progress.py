"""Progress: one bar at a time, shown only outermost and where it takes long, and one switch for all of them."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

import emolab
from emolab.base import progress
from emolab.base.progress import no_progress, progress_bar, say, steps, tracked, written_bar


def test_only_the_outermost_bar_is_shown(bars):
    with progress_bar("outer", 3, unit="run", initial=1) as outer:
        assert [item * 10 for item in tracked(iter([1, 2]), "inner", "file")] == [10, 20]
        outer.update(2)
    with progress_bar("next", 1):
        pass
    assert [(bar.desc, bar.shown, bar.total, bar.moves) for bar in bars] == [
        ("outer", True, 3, [2]), ("inner", False, 2, [1, 1]), ("next", True, 1, [])
    ]  # fmt: skip
    assert (bars[0].unit, bars[0].initial) == ("run", 1) and {bar.delay for bar in bars} == {2.0}


def test_no_bar_is_shown_inside_no_progress_and_after_an_error_they_are_again(bars):
    with no_progress(), progress_bar("hidden", 1):
        pass
    with pytest.raises(KeyError), progress_bar("fails", 1):
        raise KeyError
    list(tracked([1], "after", "file"))
    assert [bar.shown for bar in bars] == [False, True, True]


def test_a_bar_of_texts_moves_with_what_is_written_inside_and_counts_no_text_twice(bars):
    with written_bar("texts", 9, initial=2) as reach:
        with progress_bar("inner", 3) as bar, steps(bar, 3, 1):
            pass
        reach(5)
        reach(9)
    with progress_bar("after", 3) as bar, steps(bar, 3, 1):
        pass  # nobody waits for these any more
    assert [bar.moves for bar in bars] == [[3, 0, 4], [3], [3]] and bars[0].initial == 2


def test_a_batch_moves_the_bars_token_by_token_and_not_at_all_where_it_fails(bars):
    with written_bar("texts", 8), progress_bar("inner", 8) as bar:
        with steps(bar, 4, 3) as reach:
            for step in (0, 1, 2):
                reach(step)
        with pytest.raises(MemoryError), steps(bar, 4, 2) as reach:
            reach(1)
            raise MemoryError
        with steps(bar, 4, 2):
            pass  # all ended at the first token
    assert [bar.moves for bar in bars] == [[1, 1, 2, 2, -2, 4]] * 2


def test_threads_have_bars_of_their_own(bars):
    """A widget's thread and a Dask worker's begin outside of every bar."""
    with progress_bar("here", 1):
        thread = threading.Thread(target=lambda: list(tracked([1], "there", "file")))
        thread.start()
        thread.join()
    assert [bar.shown for bar in bars] == [True, True]


@pytest.mark.parametrize("shown", [True, False])
def test_one_switch_turns_off_bars_and_lines(bars, capsys, shown):
    emolab.set_progress(shown)
    list(tracked([1], "a bar", "file"))
    say("a line")
    assert bars[0].shown is shown and capsys.readouterr().out == "a line\n" * shown


def test_the_environment_turns_them_off_from_the_start(monkeypatch):
    code = "from emolab.base.progress import say; say('a line')"
    for value, line in (("0", ""), ("1", "a line\n")):
        monkeypatch.setenv("EMOLAB_PROGRESS", value)
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == line


def test_a_real_bar_waits_before_it_is_drawn(monkeypatch, capsys):
    progress.set_progress(True)
    assert list(tracked([1, 2], "quick", "file")) == [1, 2] and capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    assert list(tracked([1, 2], "drawn", "file")) == [1, 2] and "drawn: 100%" in capsys.readouterr().err
