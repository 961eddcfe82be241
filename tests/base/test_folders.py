"""One process writes into a folder at a time, also on network folders that know no locks; else the user hears why."""

from __future__ import annotations

import errno

import pandas as pd
import pytest
from filelock import FileLock, SoftFileLock, Timeout

import emolab
from emolab import plot
from emolab.base.errors import EmolabError, ResourceError
from emolab.base.folders import locked, writing
from tests import oracle
from tests.tiny import random_vectors

NO_LOCKS = {
    "ENOLCK": OSError(errno.ENOLCK, "No locks available"),
    "ENOSYS": OSError(errno.ENOSYS, "Function not implemented"),
    "EOPNOTSUPP": OSError(errno.EOPNOTSUPP, "Operation not supported"),
    "filelock 3": NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead"),
}


@pytest.fixture(params=NO_LOCKS)
def no_locks(request, monkeypatch):
    def acquire(*args, **kwargs):
        raise NO_LOCKS[request.param]

    monkeypatch.setattr(FileLock, "acquire", acquire)


def test_a_file_is_the_lock_where_there_are_no_others(no_locks, tmp_path):
    with locked(tmp_path / ".lock", 0):
        assert (tmp_path / ".lock.held").exists()
        with pytest.raises(Timeout):
            locked(tmp_path / ".lock", 0)
    assert not (tmp_path / ".lock.held").exists()
    with locked(tmp_path / ".lock", 0):
        pass


def test_a_run_goes_on_there_and_tells_of_a_lock_that_a_killed_machine_left(no_locks, tmp_path):
    with writing(tmp_path), writing(tmp_path / "claims"):
        assert (tmp_path / ".lock.held").exists()
    with SoftFileLock(tmp_path / ".lock.held"):
        with pytest.raises(ResourceError, match=r"being written by another process \(if none writes, .*lock.held\)"):
            with writing(tmp_path):
                pass


def test_answers_and_figures_are_kept_there(no_locks, tmp_path):
    model = emolab.load_model(oracle.talker())
    first, again = (
        emolab.collect_responses(model, ["tell me about the sun ."], emotions=["joy"], max_new_tokens=3, out=tmp_path)
        for _ in range(2)
    )
    pd.testing.assert_frame_equal(first, again)
    plot.save_figure(plot.norms(random_vectors(model)), "norms", directory=tmp_path / "figures")
    assert plot.check_figures(tmp_path / "figures") == []


def test_a_lock_of_another_kind_of_trouble_is_no_lock(tmp_path, monkeypatch):
    def acquire(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(ResourceError, match=r"cannot write .*\(Input/output error\).*choose another out folder"):
        with writing(tmp_path):
            pass


def test_the_time_to_wait_is_a_number(tmp_path, monkeypatch):
    monkeypatch.setenv("EMOLAB_WAIT", "a minute")
    with pytest.raises(EmolabError, match="the variable EMOLAB_WAIT is 'a minute'; expected a number of seconds"):
        with writing(tmp_path):
            pass
