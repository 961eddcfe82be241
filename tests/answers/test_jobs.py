"""The one job store: whatever is killed goes on where it was, with equal results, here and on a cluster."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import emolab
from emolab.answers import jobs as module
from emolab.answers.jobs import Store, run_jobs, write_texts
from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError
from emolab.steering.steering import Steering
from tests import tiny

PLAN = [[4, 0], [1, 2], [3]]
CALLS = []


def double(model, jobs):
    CALLS.append(jobs)
    if CALLS.count("killed") == 0 and 2 in jobs and "kill" in CALLS:
        CALLS.append("killed")
        raise KeyboardInterrupt
    return [2 * job for job in jobs]


def times(model, factor, jobs):
    return [factor * job for job in jobs]


def one_more(model, factor):
    return factor + 1


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def killed(store):
    CALLS.append("kill")
    with pytest.raises(KeyboardInterrupt):
        run_jobs(None, double, range(5), PLAN, name="double", store=store)
    CALLS.clear()


def test_values_come_in_the_order_of_their_jobs_from_chunks_in_that_of_the_plan():
    assert run_jobs(None, double, range(5), PLAN, name="double") == [0, 2, 4, 6, 8]
    assert CALLS == [[4, 0], [1, 2], [3]]
    assert run_jobs(None, double, [], [], name="double") == []


def test_what_was_killed_goes_on_where_it_was(tmp_path):
    store = Store(tmp_path / "x.parquet", {"seed": 0})
    killed(store)
    assert store.read() == {4: 8, 0: 0} and store.finished() is None
    for calls in ([[1, 2], [3]], []):
        CALLS.clear()
        assert run_jobs(None, double, range(5), PLAN, name="double", store=store) == [0, 2, 4, 6, 8]
        assert CALLS == calls


def test_other_settings_and_damaged_files_begin_anew(tmp_path):
    path = tmp_path / "x.parquet"
    killed(Store(path, {"seed": 0}))
    for damage in (lambda: None, lambda: path.write_bytes(b"PAR1 cut")):
        damage()
        other = Store(path, {"seed": 1})
        with pytest.raises(EmolabError, match="other settings|damaged"):
            other.finished()
        CALLS.clear()
        assert run_jobs(None, double, range(5), PLAN, name="double", store=other) == [0, 2, 4, 6, 8]
        assert len(CALLS) == 3


def test_a_finished_table_takes_the_place_of_the_values(tmp_path):
    store = Store(tmp_path / "x.parquet", {})
    killed(store)
    table = pd.DataFrame({"text": ["a", "b"]})
    module.write_table(table, store.path, store.settings)
    pd.testing.assert_frame_equal(store.finished(), table)
    assert store.read() == {}
    assert Store(None, {}).finished() is None and Store(None, {}).read() == {}


@pytest.mark.parametrize(
    "values", [["a", ""], [0.1, float("nan")], [True, False], [[0.5, 1.0], []], [["a"], ["b", "c"]]]
)
def test_values_are_read_as_they_were_written(tmp_path, values):
    store = Store(tmp_path / "x.parquet", {})
    store.write(dict(enumerate(values)))
    for number, value in store.read().items():
        np.testing.assert_array_equal(value, values[number])


def test_what_is_shared_is_prepared_once_and_only_for_work():
    assert run_jobs(None, times, [1, 2], [[0], [1]], name="times", shared=3, prepare=one_more) == [4, 8]
    assert run_jobs(None, times, [], [], name="times", shared=3, prepare=lambda *_: 1 / 0) == []


def test_a_cluster_gives_the_same_and_goes_on_from_the_same_file(tiny_llama, tmp_path):
    distributed = pytest.importorskip("distributed")
    store = Store(tmp_path / "x.parquet", {})
    killed(store)
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options, protocol="inproc") as machines, distributed.Client(machines) as client:
        with emolab.workers(client):
            assert run_jobs(tiny_llama, double, range(5), PLAN, name="double", store=store) == [0, 2, 4, 6, 8]
            assert run_jobs(tiny_llama, times, [1, 2], [[0], [1]], name="x", shared=3, prepare=one_more) == [4, 8]
    assert sorted(map(sorted, CALLS)) == [[1, 2], [3]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_do_not_depend_on_where_a_run_was_cut(tiny_llama, tmp_path, monkeypatch, temperature):
    prompts = [f"<bos><user>tell me about the {word}<assistant>" for word in ("park", "dog", "sea", "house", "rain")]
    joy = Steering(tiny.random_vectors(tiny_llama), {"joy": 1.0})
    steerings = [None, joy, joy, None, joy]
    options = {"chunk": 2, "max_new_tokens": 6, "writing": Writing(temperature, seed=3), "name": "texts"}
    whole = write_texts(tiny_llama, prompts, steerings, **options)
    generate, written = module.generate, []

    def dies_in_the_third_chunk(model, texts, **given):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.extend(texts)
        return generate(model, texts, **given)

    store = Store(tmp_path / "x.parquet", {})
    monkeypatch.setattr(module, "generate", dies_in_the_third_chunk)
    with pytest.raises(KeyboardInterrupt):
        write_texts(tiny_llama, prompts, steerings, **options, store=store)
    monkeypatch.setattr(module, "generate", generate)
    assert write_texts(tiny_llama, prompts, steerings, **options, store=store) == whole
    alone = generate(tiny_llama, prompts[2:4], steering=[joy, None], max_new_tokens=6, raw=True,
                     writing=Writing(temperature, seed=3 if temperature == 0 else 1003))  # fmt: skip
    assert alone == whole[2:4]
