"""Shards of a study on the workers of a Dask cluster; without one the same lines are a plain loop.

The shards are the very batches of a serial run, so the results are the same, byte for byte. Each worker process reads
the model once from where the client read it, and holds it between tasks. What a worker loses by dying, Dask gives to
another one. Only the client writes.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emolab.base.calls import held
from emolab.base.errors import EmolabError
from emolab.base.storage import versions
from emolab.models.fetch import MODELS

if TYPE_CHECKING:
    from distributed import Client

    from emolab.models.model import Model

# Nothing here imports torch on its own: Dask's scheduler loads this module, too, and only hands bytes on.
_LOCK = threading.Lock()  # hooks on a shared model know nothing of threads
_PATIENCE = 10.0  # seconds for a scheduler to answer
_client: ContextVar[Client | None] = ContextVar("client", default=None)
_held: dict[str, Any] = {}  # of a worker process: its model, and what the tasks of one call share


@dataclass(frozen=True)
class Source:
    """Where a worker reads the client's model, and by what it knows that it has the same one."""

    path: str
    options: dict[str, Any]
    fingerprint: str
    dtype: str
    threads: int
    versions: str


def run_chunks(
    model: Model,
    function: Callable,
    chunks: Sequence[tuple],
    *,
    shared: Any = None,
    prepare: Callable | None = None,
    name: str = "chunk",
) -> Iterator[dict[int, Any]]:
    """Results of function(model, *chunk) for every chunk, as they come: {number: result}, one or more at a time.

    Inside `workers` chunks come back as they are done, in any order; else they run here, one after the other.

    >>> texts = {}
    >>> for answered in run_chunks(model, emolab.generate, [(["The park."],), (["The rain."],)]):
    ...     texts |= answered

    Args:
        function: of a module, not a lambda. With `shared` it is function(model, shared, *chunk).
        shared: what all chunks need, large perhaps: it goes to every worker once.
        prepare: called once in every process, prepare(model, shared); what it gives takes the place of `shared`.
        name: of the tasks on Dask's dashboard.

    Raises:
        EmolabError: that of a chunk, as soon as it fails; a model that workers cannot read, or that is another one
            there; workers that die again and again; a lost cluster.
    """
    if not chunks:
        return
    client = _client.get()
    if client is not None:
        yield from _on_workers(client, model, function, chunks, shared, prepare, name)
        return
    if prepare is not None:
        shared = prepare(model, shared)
    for number, chunk in enumerate(chunks):
        yield {number: function(model, *chunk) if shared is None else function(model, shared, *chunk)}


@contextlib.contextmanager
def workers(cluster: Client | str | None) -> Iterator[None]:
    """Inside, the workers of a Dask cluster do the long stages: responses, activations, sweeps, scores, heads.

    >>> from dask.distributed import LocalCluster
    >>> with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, emolab.workers(cluster.scheduler_address):
    ...     summary = emolab.study("smollm2", out="runs/smollm2")

    cluster: the address of its scheduler, or a client of it (`dask.distributed.Client`); None: no cluster. Results are
    the same as without. Raises EmolabError where Dask is not installed, nobody answers, or this is no client.
    """
    with _connected(cluster) if isinstance(cluster, str) else contextlib.nullcontext(cluster) as client:
        if client is not None and not _is_client(client):
            raise EmolabError(
                f"workers are {client!r}; expected the address of a Dask scheduler, or a dask.distributed.Client that "
                "is not asynchronous"
            )
        with held(_client, client):
            yield


def _is_client(client: Any) -> bool:
    return all(hasattr(client, name) for name in ("map", "submit", "nthreads")) and not client.asynchronous


def on_cluster() -> bool:
    """Whether `workers` of a cluster do the work here."""
    return _client.get() is not None


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Client]:
    """A client of the Dask scheduler at this address, closed at the end."""
    try:
        from distributed import Client
    except ImportError:
        raise EmolabError("a cluster needs dask.distributed: pip install 'emolab[cluster]'") from None
    try:
        client = Client(address, timeout=_PATIENCE)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise EmolabError(
            f"no Dask scheduler answers at {address!r}; expected an address as `dask scheduler` prints it, "
            "like tcp://10.0.0.1:8786"
        ) from error
    with client:
        yield client


def check_workers(model: Model) -> Source | None:
    """How workers read the model; None without a cluster. EmolabError where they cannot."""
    if not on_cluster():
        return None
    import torch

    from emolab.models.model import weights_digest
    from emolab.models.sites import bridge_has_hooks

    advice = (
        "save it where every worker can read it (model.hf.save_pretrained(DIR), model.tokenizer.save_pretrained(DIR)) "
        "and pass load_model(DIR)"
    )
    if model.recipe is None:
        raise EmolabError(f"{model.name!r} was given as an object in memory, which workers cannot read; {advice}")
    if weights_digest(model.hf) != model.digest:
        raise EmolabError(f"the weights of {model.name!r} were changed after loading, workers would not know; {advice}")
    if bridge_has_hooks(model):
        raise EmolabError(
            f"{model.name!r} carries hooks (of `steered`, or your own), and these do not travel to workers; "
            "leave them, or do this outside of `workers`"
        )
    folder = Path(model.source).expanduser()
    path = str(folder.resolve()) if model.source not in MODELS and folder.exists() else model.source
    options = {**model.recipe, "revision": model.revision}
    if options["device_map"] is None:
        options["device"] = model.device.type
    # Sums depend on the number of threads: as many there as here.
    return Source(path, options, model.fingerprint, str(model.dtype), torch.get_num_threads(), versions())


def _on_workers(
    client: Client,
    model: Model,
    function: Callable,
    chunks: Sequence[tuple],
    shared: Any,
    prepare: Callable | None,
    name: str,
) -> Iterator[dict[int, Any]]:
    import dask.config
    from distributed import CancelledError, KilledWorker, as_completed
    from distributed.protocol.pickle import dumps

    source = check_workers(model)
    token = uuid.uuid4().hex[:8]  # of this call
    threads: Any = client.nthreads()  # of each worker; a coroutine only of asynchronous clients
    if not threads:
        warnings.warn("this cluster has no workers yet; waiting for the first one", stacklevel=3)
    elif max(threads.values()) > 1:
        warnings.warn(
            "a worker runs one task at a time, whatever its threads: start workers with threads_per_worker=1 (dask "
            "worker --nthreads 1), and more of them",
            stacklevel=3,
        )
    keys = [f"{name}-{number}-{token}" for number in range(len(chunks))]
    # Bytes, so that the scheduler needs none of the packages behind them; its warning of large graphs is for others.
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
        # A task, not scattered data: should the workers that hold it die, Dask makes it again.
        given = client.submit(_hold, dumps((shared, prepare)), key=f"shared-{token}") if shared is not None else None
        tasks = [dumps((function, chunk)) for chunk in chunks]
        futures = client.map(_task, tasks, source=source, shared=given, token=token, key=keys, pure=False)
    numbers = {future.key: number for number, future in enumerate(futures)}
    try:
        for batch in as_completed(futures, with_results=True).batches():
            for _, result in batch:
                if isinstance(result, CancelledError):  # handed out as if it were a result
                    raise result
            yield {numbers[future.key]: result for future, result in batch}
            for future, _ in batch:
                future.release()
    except KilledWorker as error:
        raise EmolabError(
            f"task {error.task} was given up: {error.allowed_failures + 1} workers died over it, most often for want "
            "of memory; give each worker more, or start fewer on a machine"
        ) from error
    except CancelledError as error:
        raise EmolabError(
            "the cluster was lost; what was finished is saved, the same call goes on from there on a new cluster"
        ) from error
    finally:
        for future in futures:  # of a call that was interrupted: nobody waits for the rest
            future.release()


def _hold(data: bytes) -> bytes:
    return data


def _task(task: bytes, *, source: Source, shared: bytes | None, token: str) -> Any:
    """One chunk, in a worker."""
    from distributed.protocol.pickle import loads

    with _LOCK:
        model = _model(source)
        function, chunk = loads(task)
        if shared is None:
            return function(model, *chunk)
        if _held.get("token") != token:
            _held.pop("shared", None)
            value, prepare = loads(shared)
            _held.update(shared=value if prepare is None else prepare(model, value), token=token)
        return function(model, _held["shared"], *chunk)


def _model(source: Source) -> Model:
    """The worker's model: read at its first task, then held; another one takes its place."""
    if _held.get("source") != source:
        import torch
        from distributed import get_worker

        from emolab.models.load import load_model

        _held.clear()  # before the next is read: a worker has room for one
        where = f"worker {get_worker().address}"
        if versions() != source.versions:
            raise EmolabError(f"{where} has {versions()}, this process has {source.versions}; install the same there")
        torch.set_num_threads(source.threads)
        try:
            model = load_model(source.path, **source.options)
        except EmolabError as error:
            raise EmolabError(f"{where}: {error}") from error
        if (model.fingerprint, str(model.dtype)) != (source.fingerprint, source.dtype):
            raise EmolabError(
                f"{where} reads another model from {source.path!r}: fingerprint {model.fingerprint} in {model.dtype}, "
                f"and here {source.fingerprint} in {source.dtype}; give every machine the same files"
            )
        _held.update(source=source, model=model)
    return _held["model"]
