"""Dask: the same bytes as a serial run, whatever the workers do; and what cannot be run there says so."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import emolab
from emolab.answers import generation, responses
from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError
from emolab.experiments import selection, sweeps
from emolab.judges import judges
from emolab.judges.judges import FunctionJudge
from emolab.models import workers
from emolab.steering.settings import Setting
from emolab.studies import cli, pipeline
from tests import oracle, tiny

dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
EMOTIONS = ("anger", "joy")
ROOT = Path(__file__).parents[2]


def local(n_workers=2, *, threads_per_worker=1, processes=False):
    return distributed.LocalCluster(
        n_workers=n_workers, threads_per_worker=threads_per_worker, processes=processes, dashboard_address=":0",
        protocol="tcp" if processes else "inproc", silence_logs="CRITICAL",
    )  # fmt: skip


@pytest.fixture(scope="module")
def client():
    """Two workers in this process, which share one model: quick, and counted calls are seen here."""
    with local() as machines, distributed.Client(machines) as connected:
        yield connected
    workers._held.clear()


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    return emolab.load_model(tiny.save(tmp_path_factory.mktemp("talker"), *oracle.talker()), device="cpu")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(responses, "_CHUNK", 5)
    monkeypatch.setattr(sweeps, "_CHUNK", 7)


QUERIES = oracle.queries(n_train=6, n_heldout=2)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# The central promise: the same bytes.


def written(model, out: Path) -> tuple[dict[str, bytes], list[pd.DataFrame]]:
    """All that workers take part in, in one folder; tables that have no file beside. Texts are sampled, and greedy."""
    options = {"emotions": EMOTIONS, "max_new_tokens": 6, "writing": Writing(temperature=1.0, seed=3)}
    responses = emolab.collect_responses(model, QUERIES, out=out, **options)
    means = emolab.response_means(model, responses, batch_size=4, out=out)
    vectors = emolab.extract_vectors(model, responses, sites=("resid", "attn", "head"), means=means)
    places = [
        [Setting(), Setting(part="specific")],
        [Setting(site="head", heads={1: [0, 2]}, op=op) for op in ("add", "ablate")],
        [Setting(site="attn", positions=slice(0, 3), op="clamp")],
    ]
    tables = []
    for i, settings in enumerate(places):
        directions = emolab.at(vectors, settings, ["joy", {"anger": 0.5, "joy": 0.5}])
        options = {"alphas": (0, 1, 3), "controls": ("random", "shuffled", "prompt"), "max_new_tokens": 6}
        table = emolab.sweep(model, directions, QUERIES[:3], out=out / f"{i}", **options)
        tables.append(table)
    tables.append(emolab.score(tables[0], model=model, judges=WORDY))
    given = {"n_queries": 3, "max_new_tokens": 5, "writing": Writing(batch_size=4)}
    words = {"anger": ["dark", "bad"], "joy": ["happy", "sun"]}
    for op in ("patch", "ablate"):
        test = emolab.HeadTest(op, words=words, **given)
        tables.append(emolab.head_effects(model, vectors, responses, test=test))
    test = emolab.HeadTest(judge=WORDY, **given)
    curve = emolab.ablation_curve(model, vectors, responses, ranked=tables[-1], test=test, ks=[2], n_random=1)
    return files(out), [*tables, curve]


def _wordy(texts):
    shares = [[1 + text.count("a"), 1 + text.count("o"), 1] for text in texts]
    return np.array([[x / sum(row) for x in row] for row in shares])


WORDY = FunctionJudge(_wordy, (*EMOTIONS, "neutral"), name="wordy")


def test_every_file_and_table_is_that_of_a_serial_run(talker, client, tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "embed", oracle.embed)
    serial, expected = written(talker, tmp_path / "serial")
    with emolab.workers(client):
        shared, tables = written(talker, tmp_path / "cluster")
    assert serial == shared and {"responses.parquet", "response_means.safetensors", "2/sweep.parquet"} <= set(shared)
    for ours, theirs in zip(tables, expected, strict=True):
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert expected[0]["text"].nunique() > 6, "texts that differ, or equality would say little"
    prefixes = set(client.cluster.scheduler.task_prefixes)
    assert {"responses", "activations", "sweep", "heads", "scores", "shared"} <= prefixes, "names on the dashboard"


@pytest.mark.parametrize("again_on_cluster", [True, False])
def test_a_process_that_was_cut_off_goes_on_where_it_was(talker, client, tmp_path, monkeypatch, again_on_cluster):
    options = {"emotions": EMOTIONS, "max_new_tokens": 6}
    emolab.collect_responses(talker, QUERIES, out=tmp_path / "serial", **options)
    file = tmp_path / "cut/responses.parquet"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), emolab.workers(client):
        at_write(patch, file, 3, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        emolab.collect_responses(talker, QUERIES, out=tmp_path / "cut", **options)
    kept = len(pd.read_parquet(file))
    assert 0 < kept < 24
    wait_until(lambda: not running(client))  # what a worker has begun it ends, though nobody waits for it
    asked = counted_texts(monkeypatch)
    with emolab.workers(client if again_on_cluster else None):
        emolab.collect_responses(talker, QUERIES, out=tmp_path / "cut", **options)
    assert sum(asked) == 24 - kept, "only what is missing"
    assert files(tmp_path / "cut") == files(tmp_path / "serial")


def at_write(patch, file: Path, number: int, act) -> None:
    """Act before a file takes its name for the so-manieth time."""
    replace, seen = os.replace, []

    def counting(temporary, path):
        seen.extend([path] if Path(path) == file else [])
        if Path(path) == file and len(seen) == number:
            act()
        replace(temporary, path)

    patch.setattr(os, "replace", counting)


def counted_texts(monkeypatch) -> list[int]:
    """How many texts each call of `generate` is asked for from here on."""
    asked, write = [], generation.halving

    def counting(run, plan):
        asked.append(sum(map(len, plan)))
        return write(run, plan)

    monkeypatch.setattr(generation, "halving", counting)
    return asked


def running(client) -> list:
    return [task for worker in client.cluster.workers.values() for task in worker.state.all_running_tasks]


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# How chunks run.


def test_without_workers_chunks_run_one_after_the_other_when_asked_for(talker):
    seen = []
    results = workers.run_chunks(talker, lambda model, x: seen.append(x) or x * 10, [(1,), (2,)])
    assert next(results) == {0: 10} and seen == [1] and next(results) == {1: 20} and not list(results)
    prepared = workers.run_chunks(talker, lambda m, s, x: (s, x), [(1,)], shared=3, prepare=lambda m, s: s + 1)
    assert list(prepared) == [{0: (4, 1)}]


def _note(model, shared, number):
    shared.append(number)
    return number, len(shared)


def test_the_model_is_read_once_and_what_is_shared_made_ready_once(talker, client, monkeypatch):
    workers._held.clear()
    read, load = [], emolab.models.load.load_model
    monkeypatch.setattr(emolab.models.load, "load_model", lambda *a, **k: read.append(a) or load(*a, **k))
    with emolab.workers(client):
        for _ in range(2):
            parts = workers.run_chunks(talker, _note, [(i,) for i in range(9)], shared=[], prepare=_listed)
            results = {number: result for part in parts for number, result in part.items()}
            assert sorted(results) == list(range(9)) and all(results[i][0] == i for i in results)
            lengths = sorted(length for _, length in results.values())
            assert lengths == list(range(1, 10)), "one list for all nine, a new one each call"
    # A worker may still be reading the model of the test before.
    assert read.count((str(Path(talker.source).resolve()),)) == 1


def _listed(model, shared):
    return list(shared)


_ran: list[int] = []


def _fails(model, number):
    _ran.append(number)
    if number == 0:
        raise EmolabError("chunk 0 holds nothing; give it something")
    time.sleep(0.2)


def test_the_error_of_a_chunk_is_the_callers_at_once(talker):
    with local(1) as one, distributed.Client(one) as client, emolab.workers(client):
        list(workers.run_chunks(talker, _note, [(0,)], shared=[]))  # the model is read
        start = time.monotonic()
        with pytest.raises(EmolabError, match="^chunk 0 holds nothing; give it something$"):
            list(workers.run_chunks(talker, _fails, [(i,) for i in range(40)]))
        assert time.monotonic() - start < 5 and _ran.count(0) == 1
        wait_until(lambda: not running(client))
        assert len(_ran) < 20, "the rest is let go"


def _naps(model, number):
    time.sleep(0.1)


def test_a_lost_cluster_is_one_clear_error(talker):
    with local(1) as one, emolab.workers(one.scheduler_address):
        results = workers.run_chunks(talker, _naps, [(i,) for i in range(50)])
        next(results)
        one.close()
        with pytest.raises(EmolabError, match="the cluster was lost; what was finished is saved"):
            list(results)


_inside, _most = [0], [0]


def _crowd(model, number):
    _inside[0] += 1
    _most[0] = max(_most[0], _inside[0])
    time.sleep(0.01)
    _inside[0] -= 1


def test_threads_of_a_worker_take_turns(talker, monkeypatch):
    """Without `pytest.warns`: what is done with warnings is one for all threads, and those of workers change it."""
    told = []
    monkeypatch.setattr(workers, "warnings", SimpleNamespace(warn=lambda text, **_: told.append(text)))
    with local(1, threads_per_worker=4) as crowded, emolab.workers(crowded.scheduler_address):
        list(workers.run_chunks(talker, _crowd, [(i,) for i in range(12)]))
    [warned] = told
    assert _most[0] == 1 and re.search("one task at a time.*threads_per_worker=1", warned)


# Which workers.


def test_workers_are_those_of_an_address_a_client_or_nobody(client):
    address = client.cluster.scheduler_address
    assert not workers.on_cluster()
    with emolab.workers(client):
        assert workers.on_cluster()
        with emolab.workers(None):
            assert not workers.on_cluster()
        with pytest.raises(KeyError), emolab.workers(address):
            assert workers._client.get() is not client and workers._client.get().scheduler.address == address
            connected = workers._client.get()
            raise KeyError
        assert connected.status == "closed" and workers._client.get() is client
    assert not workers.on_cluster() and client.status == "running"


@pytest.mark.parametrize("none", [3, "nonsense://x", "tcp://127.0.0.1:9", "10.0.0.1", object()])
def test_what_are_no_workers(none, monkeypatch):
    monkeypatch.setattr(workers, "_PATIENCE", 0.3)
    says = "no Dask scheduler answers at .*tcp://" if isinstance(none, str) else "workers are .*expected the address"
    with pytest.raises(EmolabError, match=says), emolab.workers(none):
        pass


def test_an_asynchronous_client_and_no_dask(monkeypatch):
    with pytest.raises(EmolabError, match="not asynchronous"):
        with emolab.workers(SimpleNamespace(map=1, submit=1, nthreads=1, asynchronous=True)):
            pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(EmolabError, match=r"pip install 'emolab\[cluster\]'"), emolab.workers("tcp://127.0.0.1:9"):
        pass


def test_threads_of_ones_own_are_on_no_cluster(client):
    """A worker's thread, in this process, must not hand its chunks on, and a widget writes here."""
    seen = []
    with emolab.workers(client):
        thread = threading.Thread(target=lambda: seen.append(workers.on_cluster()))
        thread.start()
        thread.join()
    assert seen == [False]


# What cannot run there.


def test_models_that_workers_cannot_read(talker, client, tmp_path):
    def refused(model, match):
        with pytest.raises(EmolabError, match=match), emolab.workers(client):
            emolab.collect_responses(model, QUERIES, out=tmp_path)
        assert not (tmp_path / "responses.parquet").exists()

    refused(emolab.load_model((talker.hf, talker.tokenizer)), "object in memory.*save_pretrained")
    with emolab.steered(talker, emolab.Steering(tiny.random_vectors(talker), {"joy": 1.0})):
        refused(talker, "carries hooks")
    own = emolab.load_model(tiny.save(tmp_path / "own", *oracle.talker()), device="cpu")
    tiny.save(tmp_path / "own", tiny.build(tiny.llama_config(), seed=5), tiny.tokenizer())
    refused(own, "reads another model from .*own': fingerprint .* and here .*same files")
    own.hf.model.embed_tokens.weight[:] = 0
    refused(own, "were changed after loading")
    with pytest.raises(EmolabError, match="object in memory"), emolab.workers(client):  # at once, before any stage
        pipeline.study((talker.hf, talker.tokenizer), out=tmp_path / "study")


def test_a_worker_with_other_versions_or_without_the_files_says_so(talker, client):
    workers._held.clear()
    with emolab.workers(client):
        source = workers.check_workers(talker)
    cases = {
        "has emolab.*this process has emolab 0.0": replace(source, versions="emolab 0.0"),
        "worker .*: no model '/nowhere': there is no such directory": replace(source, path="/nowhere"),
        "worker .*: torch cannot use device 'cuda:99'": replace(source, options=source.options | {"device": "cuda:99"}),
    }
    for match, given in cases.items():
        with pytest.raises(EmolabError, match=match):
            client.submit(workers._model, given, pure=False).result()


def test_dask_is_imported_only_where_it_is_used():
    for path in sorted((ROOT / "emolab").rglob("*.py")):
        assert not re.search(r"^(from|import) (dask|distributed)", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_the_command_line_names_the_workers(talker, client, tmp_path, monkeypatch):
    on, address = [], client.cluster.scheduler_address

    def study(model, **_):
        on.append(workers._client.get().scheduler.address if workers.on_cluster() else None)

    monkeypatch.setattr(pipeline, "study", study)
    command = ["study", "--model", talker.source, "--out", str(tmp_path)]
    assert cli.main([*command, "--cluster", address]) == cli.main(command) == 0 and on == [address, None]


# Processes of their own, killed without a word.


@pytest.mark.slow
def test_a_study_whose_workers_are_killed_equals_the_serial_one(talker, tmp_path, monkeypatch):
    """A worker dies by SIGKILL in the middle of the responses and another in the middle of the sweep of the report."""
    monkeypatch.setattr(judges, "embed", oracle.embed)
    monkeypatch.setattr(pipeline, "run_figures", lambda out: [])
    monkeypatch.setattr(pipeline, "write_report", lambda out: None)
    search = selection.Search(windows=("late",), rounds=(selection.Round(1, (1.0,), 1),), doses=(0.5, 1.0, 2.0))
    plan = pipeline.Plan((4, 2, 3), max_new_tokens=20, search=search, methods=())
    options = {"queries": oracle.queries(n_train=12, n_heldout=4), "emotions": EMOTIONS, "plan": plan}
    options |= {"seed": 1}
    serial = pipeline.study(talker, out=tmp_path / "serial", **options)
    killed = []
    with local(2, processes=True) as machines, distributed.Client(machines) as client, emolab.workers(client):

        def kill_a_busy_worker():
            busy = [address for address, tasks in client.processing().items() if tasks]
            os.kill(client.run(os.getpid, workers=busy[:1])[busy[0]], signal.SIGKILL)
            killed.append(busy[0])

        at_write(monkeypatch, tmp_path / "cluster/responses.parquet", 2, kill_a_busy_worker)
        at_write(monkeypatch, tmp_path / "cluster/sweep.parquet", 3, kill_a_busy_worker)
        found = pipeline.study(talker, out=tmp_path / "cluster", **options)
    assert len(killed) == 2
    for name in ("timings", "expected"):
        serial.pop(name), found.pop(name)
    assert found == serial
    theirs, ours = files(tmp_path / "serial"), files(tmp_path / "cluster")
    timed = ("summary.json", ".lock")
    assert {k: v for k, v in ours.items() if k not in timed} == {k: v for k, v in theirs.items() if k not in timed}
    assert {"sweep.parquet", "vectors.safetensors", "selection/doses/0/sweep.parquet", "scores.parquet"} <= set(ours)


def _dies(model, number):
    os._exit(1)


@pytest.mark.slow
def test_a_chunk_that_kills_every_worker_is_given_up(talker):
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}), local(1, processes=True) as machines:
        with emolab.workers(machines.scheduler_address):
            with pytest.raises(EmolabError, match="2 workers died over it.*memory"):
                list(workers.run_chunks(talker, _dies, [(0,)]))


@pytest.mark.slow
def test_a_killed_command_goes_on_on_the_same_cluster(talker, tmp_path):
    """`dask scheduler`, `dask worker` and `emolab sweep --cluster` as processes; SIGKILL; the same command again."""
    emolab.EmotionVectors.save(tiny.random_vectors(talker), tmp_path / "vectors.safetensors")
    asked = [f"tell me about the {word} ." for word in oracle.PLAIN[:40]]
    (tmp_path / "queries.json").write_text(json.dumps(asked))
    command = ["sweep", "--model", talker.source, "--vectors", str(tmp_path / "vectors.safetensors")]
    command += ["--queries", str(tmp_path / "queries.json"), "--controls", "--alphas", *"0 1 2 3 4 5 6".split()]
    assert cli.main([*command, "--out", str(tmp_path / "serial")]) == 0
    file, started = tmp_path / "scheduler.json", []

    def start(*words):
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": ROOT}
        started.append(subprocess.Popen([sys.executable, "-m", *words], **options))
        return started[-1]

    try:
        start("dask", "scheduler", "--scheduler-file", str(file), "--port", "0", "--dashboard-address", ":0")
        start("dask", "worker", "--scheduler-file", str(file), "--nthreads", "1", "--dashboard-address", ":0")
        wait_until(file.exists, 60)
        address = json.loads(file.read_text())["address"]
        cut = [*command, "--out", str(tmp_path / "cut"), "--cluster", address]
        client = start("emolab", *cut)
        wait_until((tmp_path / "cut/sweep.parquet").exists, 120)
        client.kill()
        client.wait()
        assert "job" in pd.read_parquet(tmp_path / "cut/sweep.parquet"), "killed in the middle"
        assert cli.main(cut) == 0
        with distributed.Client(address) as look:
            assert not look.run_on_scheduler(lambda: "torch" in sys.modules), "the scheduler only hands bytes on"
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(20)
    assert files(tmp_path / "cut")["sweep.parquet"] == files(tmp_path / "serial")["sweep.parquet"]
