"""Long work in chunks, each kept as soon as it is done: the one way for responses, sweeps, scores, comparisons, heads.

>>> from emolab.answers.jobs import Store, run_jobs
>>> def lengths(model, prompts): return [len(ids) for ids in model.tokenizer(prompts).input_ids]
>>> run_jobs(model, lengths, ["The park.", "The rain in May."], plan=[[0], [1]], name="lengths")
[3, 5]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from emolab.answers.generation import generate
from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError
from emolab.base.progress import written_bar
from emolab.base.storage import read_table, write_table
from emolab.models.model import Model
from emolab.models.prompts import render_prompts
from emolab.models.workers import on_cluster, run_chunks
from emolab.steering.steering import Steering


@dataclass(frozen=True)
class Store:
    """The parquet file that holds the values of the jobs done so far; path None keeps nothing.

    >>> store = Store(Path("runs/smollm2/sweep.parquet"), {"model": model.name, "max_new_tokens": 80})

    settings tell this work from any other, the list of its jobs among them. A value is a number, a text or a list of
    these, which comes back as a numpy array.
    """

    path: Path | None
    settings: dict[str, Any]

    def finished(self) -> pd.DataFrame | None:
        """The table that stands in this file once all jobs are done and the caller has made it from their values.

        None where there is no file yet, or only values. Raises EmolabError where the file was made with other settings
        or is damaged: what took hours is not overwritten unasked.
        """
        table = read_table(self.path, self.settings)
        return None if table is None or "job" in table else table

    def read(self) -> dict[int, Any]:
        """{job number: value}; empty where there is no file, one of other settings, or a damaged one."""
        try:
            table = read_table(self.path, self.settings)
        except EmolabError:
            return {}
        return {} if table is None or "job" not in table else dict(zip(table["job"], table["value"], strict=True))

    def remove(self) -> None:
        """Drop the file, once what came of its values stands elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def write(self, values: dict[int, Any]) -> None:
        table = pd.DataFrame({"job": list(values), "value": list(values.values())})
        write_table(table, self.path, self.settings)


def run_jobs(
    model: Model,
    function: Callable[..., Sequence[Any]],
    jobs: Sequence[Any],
    plan: Sequence[Sequence[int]],
    *,
    name: str,
    store: Store | None = None,
    shared: Any = None,
    prepare: Callable | None = None,
) -> list[Any]:
    """The value of every job, in their order, worked out chunk by chunk: here, or inside `workers` on the cluster.

    Args:
        function: function(model, jobs_of_a_chunk) gives one value for each of them; with `shared` it is
            function(model, shared, jobs_of_a_chunk). A function of a module, so that workers find it.
        plan: the chunks, as lists of job numbers.
        name: of the progress bar, and of the tasks on Dask's dashboard.
        store: written after every chunk. A killed run goes on from there with the same plan, so that no value depends
            on where it was cut; with other settings it begins anew.
        shared, prepare: see `emolab.models.workers.run_chunks`.
    """
    values = {} if store is None else store.read()
    missing = [[number for number in chunk if number not in values] for chunk in plan]
    missing = [chunk for chunk in missing if chunk]
    tasks = [([jobs[number] for number in chunk],) for chunk in missing]
    with written_bar(name, len(jobs), len(values)) as reach:
        results = run_chunks(model, function, tasks, shared=shared, prepare=prepare, name=name) if tasks else ()
        for done in results:
            for task, new in done.items():
                values |= dict(zip(missing[task], new, strict=True))
            if store is not None:
                store.write(values)
            reach(len(values))
    return [values[number] for number in range(len(jobs))]


def chunks(n: int, size: int) -> list[range]:
    """A plan for `run_jobs`: n jobs in their order, so many at a time.

    >>> chunks(5, 2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def prompts_of(
    model: Model, queries: Sequence[str], conditions: Sequence[str], writing: Writing = Writing()
) -> list[str]:
    """The complete prompt of each query under its condition, in the writing's wording; equal ones are rendered once.

    >>> plain, joyful = prompts_of(model, ["Tell me about the park."] * 2, ["neutral", "joy"])
    """
    prompts = {}
    for condition in dict.fromkeys(conditions):
        asked = list(dict.fromkeys(q for q, c in zip(queries, conditions, strict=True) if c == condition))
        rendered = render_prompts(model, asked, condition, templates=writing.templates)
        prompts |= {(query, condition): prompt for query, prompt in zip(asked, rendered, strict=True)}
    return [prompts[pair] for pair in zip(queries, conditions, strict=True)]


def write_texts(
    model: Model,
    prompts: Sequence[str],
    steerings: Sequence[Steering | None],
    *,
    chunk: int,
    max_new_tokens: int,
    writing: Writing,
    name: str,
    store: Store | None = None,
) -> list[str]:
    """What `generate` writes to many complete prompts, each with its own steering, in chunks of so many rows.

    A sampled text depends on its chunk, which draws from a stream of its own (`Writing.chunk`), and on nothing else.
    """
    different = list({id(steering): steering for steering in steerings}.values())
    number = {id(steering): k for k, steering in enumerate(different)}
    jobs = [
        (prompt, number[id(steering)], writing.chunk(row // chunk))
        for row, (prompt, steering) in enumerate(zip(prompts, steerings, strict=True))
    ]
    plan = chunks(len(jobs), chunk)
    shared = (_light(different) if on_cluster() else different, max_new_tokens)
    return run_jobs(model, _write, jobs, plan, name=name, store=store, shared=shared)


def _write(model: Model, shared: tuple[list[Steering | None], int], jobs: list[tuple[str, int, Writing]]) -> list[str]:
    steerings, max_new_tokens = shared
    prompts = [prompt for prompt, _, _ in jobs]
    chosen = [steerings[number] for _, number, _ in jobs]
    writing = jobs[0][2]  # of the whole chunk
    return generate(model, prompts, steering=chosen, max_new_tokens=max_new_tokens, writing=writing, raw=True)


def _light(steerings: list[Steering | None]) -> list[Steering | None]:
    """The same steerings, their vectors without what they do not use: these travel to every worker."""
    given = [steering for steering in steerings if steering is not None]
    light = {}
    for key, vectors in {id(steering.vectors): steering.vectors for steering in given}.items():
        sites = {steering.site for steering in given if steering.vectors is vectors}
        light[key] = replace(vectors, data={site: vectors.data[site] for site in sites}, means=None)
    return [s if s is None else replace(s, vectors=light[id(s.vectors)]) for s in steerings]
