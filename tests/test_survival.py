"""What happens to a study on a shared machine: kills, Ctrl-C, two at once, no room, no permission, no memory."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import emolab
from emolab.answers.generation import generate
from emolab.answers.logprobs import token_logprobs
from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError, ResourceError
from emolab.base.folders import LOCK, WAIT, writing
from emolab.models import memory
from emolab.models.memory import halving, room
from emolab.models.prompts import plan_batches, render_prompts
from emolab.studies import pipeline
from tests import oracle, tiny
from tests.steering.test_steering import hooks_left

ROOT = Path(__file__).parents[1]
QUERIES = ["tell me about the park .", "how ?", "a dog and a cat in the rain", "did you feel sad today ?", "the sun !"]


def python(*arguments, timeout=1500) -> str:
    """What a fresh interpreter prints; it must end well."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, timeout=timeout)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout.decode()


def contents(folder: Path) -> dict[str, object]:
    """What a killed run must give again: every file byte for byte, but for what is a time.

    Measured times stand in `timings` of summary.json, in the columns `seconds` and `speed` of the baselines (so in
    summary.json and in the report, too).
    """
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name == "baselines.parquet" or (name.startswith("baselines/") and name.endswith(" unsteered.parquet")):
            table = pd.read_parquet(path)
            found[name] = table.drop(columns=["seconds", "speed"], errors="ignore").to_json(double_precision=15)
        elif name == "summary.json":
            summary = json.loads(path.read_text())
            del summary["timings"], summary["expected"]
            for row in summary["baselines"].values():
                del row["seconds"], row["speed"]
            found[name] = json.dumps(summary)
        elif name == "report.html":
            found[name] = re.sub(r"<td[^>]*>\s*[\d.]+\s*</td>", "", path.read_text())
        else:
            found[name] = path.read_bytes()
    return found


POINTS = "geometry/points.parquet"


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_files(tmp_path):
    told = json.loads(python("-m", "tests.survival", "kill", tmp_path, 1).splitlines()[-1])
    assert len(told["timed"]) + len(told["writes"]) >= 18, told
    assert len({way.split()[1].split("/")[0] for way in told["writes"]}) >= 5, "the kills hit all sorts of files"
    plain = contents(tmp_path / "plain")
    assert {"sweep.parquet", "response_means.safetensors", "figures/norms.png", "heads.parquet"} & set(plain)
    for killed in ("timed", "writes"):
        found = contents(tmp_path / killed)
        assert set(found) == set(plain), "nothing is lost and nothing is left over"
        # The last digits of a UMAP may differ between processes.
        assert [name for name in plain if found[name] != plain[name] and name != POINTS] == [], told
        one, other = (pd.read_parquet(tmp_path / run / POINTS) for run in ("plain", killed))
        pd.testing.assert_frame_equal(one, other, atol=1e-3, rtol=1e-3)


def listening(command) -> subprocess.Popen:
    """A process that hears Ctrl-C, where the tests run in the background, too."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    hears = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, preexec_fn=hears, **pipes)


@pytest.mark.slow
def test_ctrl_c_in_every_stage(tmp_path):
    *stopped, last = json.loads(python("-m", "tests.survival", "interrupt", tmp_path, 0).splitlines()[-1])
    for at in stopped:
        assert at["code"] == 130 and at["seconds"] < 2, at
        assert "the same command goes on from there" in at["told"][0] and str(tmp_path / "run") in at["told"][1], at
        assert at["told"][1].startswith("emolab study --model "), at
    assert last["code"] == 0 and "report in" in last["told"][-1] and len(stopped) == 6


@pytest.mark.slow
def test_ctrl_c_of_the_real_command(tmp_path):
    """With all imports and the end of the interpreter."""
    tiny.save(tmp_path / "talker", *oracle.talker())
    command = [sys.executable, "-m", "emolab", "study", "--model", tmp_path / "talker", "--queries", "general"]
    process = listening([*command, "--out", tmp_path / "run"])
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"load: ")
    while not (tmp_path / "run/responses.parquet").exists():
        time.sleep(0.05)
    begin = time.perf_counter()
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130 and time.perf_counter() - begin < 2, error
    assert f"--out {tmp_path / 'run'}" in error.splitlines()[-1] and "Traceback" not in error
    assert len(pd.read_parquet(tmp_path / "run/responses.parquet")) % 64 == 0, "whole chunks are saved"


def test_an_interrupted_call_says_how_to_go_on(tiny_llama, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "load_queries", interrupt)
    with pytest.raises(KeyboardInterrupt) as stop:
        emolab.study(tiny_llama, out=tmp_path)
    assert stop.value.__notes__ == [f"What was finished is saved in {tmp_path}; the same call goes on from there."]
    with writing(tmp_path):
        pass


# Two at once.

HOLD = """
import sys
from emolab.base.folders import writing
with writing(sys.argv[1]):
  print("held", flush=True); input()
"""


@pytest.fixture
def held(tmp_path):
    """A folder that another process holds, and that process."""
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": ROOT}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **options) as process:
        assert process.stdout.readline() == b"held\n"
        yield tmp_path, process
        process.kill()


def test_a_second_process_is_told_at_once(held, tiny_llama):
    folder, _ = held
    vectors = tiny.random_vectors(tiny_llama)
    begin = time.perf_counter()
    calls = (
        lambda: emolab.study(tiny_llama, out=folder),
        lambda: emolab.collect_responses(tiny_llama, QUERIES, out=folder),
        lambda: emolab.sweep(tiny_llama, vectors, QUERIES, out=str(folder)),
    )
    for call in calls:
        with pytest.raises(ResourceError, match=f"{folder} is being written by another process"):
            call()
    assert time.perf_counter() - begin < 2 and os.listdir(folder) == [LOCK]


def test_notebooks_that_run_side_by_side_wait_for_a_shared_folder(held, monkeypatch):
    folder, process = held
    monkeypatch.setenv(WAIT, "0.2")
    with pytest.raises(ResourceError, match="being written by another process"), writing(folder):
        pass
    monkeypatch.setenv(WAIT, "60")
    threading.Timer(0.5, process.kill).start()
    begin = time.perf_counter()
    with writing(folder):
        assert 0.4 < time.perf_counter() - begin < 30


def test_the_lock_of_a_killed_process_is_no_lock(held):
    folder, process = held
    (folder / "figures").mkdir()
    left = [folder / f".a.json.{process.pid}.tmp", folder / f"figures/.b.png.{os.getpid()}.tmp"]
    kept = [folder / f".c.json.{os.getppid()}.tmp", folder / ".mine.tmp", folder / "d.1.tmp"]
    for path in (*left, *kept):
        path.write_text("half")
    process.kill()
    process.wait()
    with writing(folder):
        assert not any(path.exists() for path in left) and all(path.exists() for path in kept)


def test_the_lock_nests_in_one_process_and_is_not_inherited(tmp_path):
    with writing(tmp_path), writing(str(tmp_path / "claims")), writing(tmp_path), writing(None):
        assert not (tmp_path / "claims").exists(), "a folder in a held one is held"
        with pytest.raises(AssertionError, match="being written by another process"):
            python("-c", HOLD, tmp_path)
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError
    with pytest.raises(AssertionError, match="EOF"):  # it got as far as asking for input
        python("-c", HOLD, tmp_path)
    with pytest.raises(EmolabError, match="expected the path of a folder"), writing(3):
        pass


# No room, no permission.


@pytest.fixture
def shut(tmp_path):
    """A folder in which nothing can be written, by root neither."""
    if os.getuid():
        tmp_path.chmod(0o555)
        yield tmp_path / "run"
        tmp_path.chmod(0o755)
    elif Path("/sys/kernel").is_dir():
        yield Path("/sys/kernel/emolab-run")
    else:
        pytest.skip("root can write everywhere here")


def test_a_folder_that_is_read_only(shut, tiny_llama):
    with pytest.raises(ResourceError, match=rf"cannot write {shut} \(.*not permitted|denied\).*run the same again"):
        emolab.study(tiny_llama, out=shut)
    with pytest.raises(ResourceError, match="cannot write .*vectors.safetensors"):
        tiny.random_vectors(tiny_llama).save(shut / "vectors.safetensors")


@pytest.fixture
def no_room():
    """Once called, no file may grow beyond 2,000 bytes: the kernel refuses the write, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(tiny_llama, tmp_path, no_room):
    emolab.collect_responses(tiny_llama, QUERIES, out=tmp_path, max_new_tokens=4)
    tiny.random_vectors(tiny_llama).save(tmp_path / "vectors.safetensors")
    responses = oracle.responses(tiny_llama, QUERIES, ("joy",))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    no_room()
    for call in (
        lambda: emolab.collect_responses(tiny_llama, QUERIES, out=tmp_path / "more", max_new_tokens=4),
        lambda: tiny.random_vectors(tiny_llama, seed=1).save(tmp_path / "vectors.safetensors"),
        lambda: emolab.extract_vectors(tiny_llama, responses, out=tmp_path),
    ):
        with pytest.raises(ResourceError, match="cannot write .* too large.*what was written before is whole"):
            call()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_ends_a_study_is_not_taken_for_a_claim_that_cannot_be_asked(monkeypatch):
    def full(*_, **__):
        raise ResourceError("cannot write x")

    monkeypatch.setattr(pipeline, "check_claims", full)
    with pytest.raises(ResourceError, match="cannot write x"):
        pipeline._claims(None, None, None, None, None, 4)


# No memory.


def full_cpu() -> None:
    torch.empty(2**55, dtype=torch.uint8)  # the real error: no address space is that large


def full_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture
def room_for(request):
    """Makes every embedding of more than n rows run out of memory."""
    handles, seen = [], []

    def limit(n: int, run_out=full_cpu) -> list[int]:
        def hook(module, args):
            if isinstance(module, torch.nn.Embedding) and args[0].ndim == 2:
                seen.append(len(args[0]))
                if len(args[0]) > n:
                    run_out()

        handles.append(torch.nn.modules.module.register_module_forward_pre_hook(hook))
        return seen

    yield limit
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("run_out", [full_cpu, full_gpu])
def test_out_of_memory_halves_the_batch(tiny_llama, room_for, run_out):
    vectors = tiny.random_vectors(tiny_llama, scale=0.5)
    rows = [emolab.Steering(vectors, {"joy": x}) if x else None for x in (1.0, 0, 0.5, -1.0, 0, 1.5, 0, 0, 2.0, 1.0)]
    asked = (QUERIES * 2)[: len(rows)]
    prompts = render_prompts(tiny_llama, asked)
    options = {"steering": rows, "max_new_tokens": 12}
    texts = generate(tiny_llama, asked, **options)
    logprobs = token_logprobs(tiny_llama, prompts, texts, steering=rows)
    responses = oracle.responses(tiny_llama, QUERIES, ("joy",))
    means = emolab.response_means(tiny_llama, responses)
    clean, seen = hooks_left(tiny_llama), room_for(3, run_out)
    with pytest.warns(UserWarning, match="memory ran out; going on in batches of 2") as told:
        assert generate(tiny_llama, asked, **options) == texts
        # Of ten rows first the five different prompts are read; of five rows, all.
        assert len(told) == 1 and seen[:3] == [len(QUERIES), 5, 2] == [5, 5, 2] and max(seen[3:]) == 2
    with pytest.warns(UserWarning, match="memory ran out; going on in batches of") as told:
        again = token_logprobs(tiny_llama, prompts, texts, steering=rows)
        found = emolab.response_means(tiny_llama, responses)
    assert len(told) == 2 and hooks_left(tiny_llama) == clean
    for one, other in zip(again, logprobs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    pd.testing.assert_frame_equal(found.index, means.index)
    for site in means.means:
        np.testing.assert_allclose(found.means[site], means.means[site], atol=1e-5)


def test_one_row_that_does_not_fit_is_one_clear_error(tiny_llama, room_for):
    settings, clean = tiny_llama.hf.generation_config, hooks_left(tiny_llama)
    room_for(0)
    steering = emolab.Steering(tiny.random_vectors(tiny_llama), {"joy": 1.0})
    with pytest.raises(ResourceError, match=r"one text alone \(.*can't allocate memory.*use shorter texts") as error:
        generate(tiny_llama, QUERIES, steering=steering)
    assert "\n" not in str(error.value)
    assert hooks_left(tiny_llama) == clean and tiny_llama.hf.generation_config is settings


def test_halving_hands_out_each_row_once_in_order():
    tried = []

    def run(rows):
        tried.append(list(rows))
        if len(rows) > 3:
            raise MemoryError
        return [10 * i for i in rows]

    plan = [[5, 1], [0, 2, 3, 4, 6, 7, 8], [9, 10, 11, 12]]
    with pytest.warns(UserWarning) as told:
        found = list(halving(run, plan))
    assert [i for rows, _ in found for i in rows] == sum(plan, [])
    assert all(values == [10 * i for i in rows] for rows, values in found)
    assert tried == [[5, 1], plan[1], [0, 2, 3], [4, 6, 7], [8], [9, 10, 11], [12]], "what fitted once is kept to"
    assert [str(t.message) for t in told] == ["memory ran out; going on in batches of 3"]
    with pytest.raises(RuntimeError, match="shape"), warnings.catch_warnings():
        list(halving(lambda rows: torch.ones(2).reshape(3), plan))


def test_sampled_rows_stay_different_when_halved(tiny_llama, room_for):
    options = {"writing": Writing(temperature=1.5, seed=3), "max_new_tokens": 12}
    room_for(1)
    with pytest.warns(UserWarning, match="batches of 1"):
        texts = generate(tiny_llama, QUERIES[:1] * 4, **options)
    assert len(set(texts)) == 4


# Batches by the memory that is free.


def test_batches_shrink_with_the_memory_that_is_free(tiny_llama, monkeypatch):
    lengths, plan = [50] * 300, partial(plan_batches, tiny_llama, cached=True)
    usual = plan(lengths)
    assert [len(rows) for rows in usual] == [128, 128, 44]
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**20)
    assert plan(lengths) == usual, "a small model has one plan, whatever is free"
    monkeypatch.setattr(memory, "SMALL", 0)
    # float32: keys and values 2 * 3 layers * 2 heads * 8, activations 8 * 32 + 4 * 48; attention 2 * 4 bytes * 4 * 50
    cost = 4 * (2 * 3 * 2 * 8 + 8 * 32 + 4 * 48) + 8 * 4 * 50
    assert room(tiny_llama, 50) == 0.5 * 2**20 / cost
    few = plan(lengths)
    assert {len(rows) for rows in few} == {int(0.5 * 2**20 / cost) // 50} and sum(few, []) == list(range(300))
    assert room(tiny_llama, 50, logits=True) == 0.5 * 2**20 / (cost + 12 * tiny_llama.cfg.d_vocab)
    assert plan(lengths, 70) == plan(lengths, 70)
    assert [len(rows) for rows in plan(lengths, 70)] == [70, 70, 70, 70, 20], "given counts"
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**21 - 1)
    assert plan(lengths) == few, "a little more free changes nothing"
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10)
    assert {len(rows) for rows in plan(lengths)} == {1}
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    assert plan(lengths) == usual


def test_free_memory_is_what_the_system_says():
    free = memory.free_bytes(torch.device("cpu"))
    assert free is not None and 0 < free < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory.free_bytes(torch.device("meta")) is None
