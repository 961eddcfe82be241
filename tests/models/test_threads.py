"""Threads are set once, from the cores that this process may use; others that use these are told of."""

import warnings
from pathlib import Path

import pytest
import torch

from emolab.models import threads
from emolab.models.threads import sharing_cores


@pytest.fixture
def machine(monkeypatch):
    """Two cores and four threads; what it says of other processes and of time."""
    state = {"elsewhere": 0.0, "now": 0.0, "threads": 4}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_done", False)
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    monkeypatch.setattr(threads, "_busy_elsewhere", lambda: state["elsewhere"])
    monkeypatch.setattr(threads.time, "monotonic", lambda: state["now"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: state["threads"])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: state.update(threads=n))
    return state


def work(state, seconds, elsewhere):
    with sharing_cores():
        state["now"] += seconds
        state["elsewhere"] += elsewhere


def test_threads_are_no_more_than_cores_and_set_once(machine):
    work(machine, 4, 0.1)
    assert machine["threads"] == 2
    machine["threads"] = 4  # by the user, later on
    work(machine, 4, 0.1)
    assert machine["threads"] == 4


def test_fewer_threads_stay_fewer(machine):
    machine["threads"] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        work(machine, 4, 4.0)  # one thread beside one busy core
    assert machine["threads"] == 1


@pytest.mark.parametrize(("seconds", "elsewhere", "told"), [(4, 8.0, True), (4, 1.0, False), (0.2, 0.4, False)])
def test_cores_that_others_keep_busy_are_told_of(machine, seconds, elsewhere, told):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        work(machine, seconds, elsewhere)
    assert bool(said) is told
    if told:
        assert "keep 2.0 of 2 cores busy, and 2 threads" in str(said[0].message)
        assert "OMP_NUM_THREADS=1" in str(said[0].message)


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_who_has_chosen_is_left_alone(machine, monkeypatch, name):
    monkeypatch.setenv(name, "4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        work(machine, 4, 8.0)
    assert machine["threads"] == 4


def test_the_warning_points_to_the_call_of_load_model(machine):
    def load_model():
        with sharing_cores():
            machine["now"] += 4
            machine["elsewhere"] += 8

    with pytest.warns(UserWarning, match="cores busy") as said:
        load_model()
    lines = Path(__file__).read_text().splitlines()
    assert lines[said[0].lineno - 1].strip() == "load_model()" and said[0].filename == __file__


def test_cores_and_their_use_are_numbers_of_this_machine():
    assert threads.usable_cores() >= 1 and threads._busy_elsewhere() >= 0
