"""Command line `emolab`, thin over the same functions as in Python."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from emolab.errors import EmolabError


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 when it worked, 2 after a clear error, 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (EmolabError, OSError) as error:
        print(f"emolab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("emolab: interrupted; what was finished is saved, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="emolab", description="Emotion vectors in language models.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run, help: str, *, out: str | None = None) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        sub.add_argument("--model", default="mini", help="bundled name, hub id or directory (default: mini)")
        sub.add_argument(
            "--out",
            type=Path,
            default=out and Path(out),
            help=f"folder of the run{f' (default: {out})' if out else ''}",
        )
        sub.add_argument("--dtype", default="float32")
        sub.add_argument("--seed", type=int, default=0)
        return sub

    sub = command(
        "study", _study, "everything: responses, vectors, doses with controls, figures, summary.json", out="runs/study"
    )
    sub.add_argument("--queries", help="bundled set or JSON file with splits (default: mini for mini, else general)")
    sub.add_argument("--n-queries", type=int, nargs=3, default=(40, 20, 26), metavar=("EXTRACT", "SELECT", "REPORT"))
    sub.add_argument("--emotions", nargs="+", help="default: anger disgust fear joy sadness")
    sub.add_argument("--methods", nargs="*", help="baselines to compare with; none after the option: no comparison")
    sub = command("extract", _extract, "collect responses and extract emotion vectors", out="runs/vectors")
    sub.add_argument("--queries", help="bundled set or JSON file")
    sub.add_argument("--split", help="default: train, or all of a file without that split")
    sub.add_argument("--emotions", nargs="+")
    sub = command("steer", _steer, "write answers with emotion vectors added")
    sub.add_argument("--vectors", type=Path, required=True, help="a vectors.safetensors")
    sub.add_argument("--set", action="append", required=True, metavar="EMOTION=DOSE", help="may be given several times")
    sub.add_argument("--site", default="resid")
    sub.add_argument("--layers", default="all", help="all, or numbers: 2,3,4")
    sub.add_argument("--part", default="whole")
    sub.add_argument("--dose", default="vector")
    sub.add_argument("--max-new-tokens", type=int, default=80)
    sub.add_argument("prompts", nargs="+")
    sub = command("sweep", _sweep, "steer queries over a grid of doses, beside controls", out="runs/sweep")
    sub.add_argument("--vectors", type=Path, required=True)
    sub.add_argument("--queries", help="bundled set or JSON file")
    sub.add_argument("--split", help="default: heldout, or all of a file without that split")
    sub.add_argument("--alphas", type=float, nargs="+", default=[-1, 0, 0.5, 1, 2, 4])
    sub.add_argument("--controls", nargs="*", default=["random", "shuffled"])
    sub.add_argument("--site", nargs="+", default=["resid"])
    sub.add_argument("--part", nargs="+", default=["whole"])
    sub.add_argument("--layers", nargs="+", default=["all"], help="all, each, thirds, or numbers: 2,3,4")
    sub.add_argument("--op", nargs="+", default=["add"], choices=["add", "ablate", "clamp"])
    sub.add_argument("--emotions", nargs="+", help='names or mixtures: joy "0.5 anger + 0.5 joy" (default: all)')
    command("score", _score, "judge the texts of a sweep", out="runs/sweep")
    command("figures", _figures, "draw the figures of a study again", out="runs/study")
    sub = command("info", _info, "what a vectors file or a run holds")
    sub.add_argument("path", type=Path)
    return parser


def _study(a: argparse.Namespace) -> None:
    from emolab.emotions import EMOTIONS
    from emolab.models import load_model
    from emolab.pipeline import study

    options = {"queries": a.queries, "n_queries": tuple(a.n_queries), "methods": a.methods, "seed": a.seed}
    study(load_model(a.model, dtype=a.dtype), out=a.out, emotions=a.emotions or EMOTIONS, **options)


def _queries(a: argparse.Namespace, split: str):
    from emolab.queries import load_queries

    queries = load_queries(a.queries or ("mini" if a.model == "mini" else "general"))
    wanted = a.split or (split if split in set(queries["split"]) else None)  # a user's own list has one split
    if wanted is not None and wanted not in set(queries["split"]):
        known = ", ".join(sorted(set(queries["split"])))
        raise EmolabError(f"--split {wanted!r}: these queries have no split {wanted!r}; they have {known}")
    return queries if wanted is None else queries[queries["split"] == wanted].reset_index(drop=True)


def _extract(a: argparse.Namespace) -> None:
    from emolab import EMOTIONS, collect_responses, extract_vectors, load_model

    model = load_model(a.model, dtype=a.dtype)
    responses = collect_responses(model, _queries(a, "train"), emotions=a.emotions or EMOTIONS, out=a.out, seed=a.seed)
    print(extract_vectors(model, responses, sites=("resid", "attn", "mlp", "head"), out=a.out))
    print(f"saved {a.out / 'vectors.safetensors'}")


def _steer(a: argparse.Namespace) -> None:
    from emolab import EmotionVectors, Steering, generate, load_model

    doses = {}
    for item in a.set:
        emotion, _, dose = item.partition("=")
        try:
            doses[emotion] = float(dose)
        except ValueError:
            raise EmolabError(f"--set {item!r} is not EMOTION=NUMBER; write for example --set joy=1.5") from None
    layers = _layers(a.layers, words=("all",))
    vectors = EmotionVectors.load(a.vectors)
    steering = Steering(vectors, doses, site=a.site, layers=layers, part=a.part, dose=a.dose)
    model = load_model(a.model, dtype=a.dtype)
    texts = generate(model, a.prompts, steering=steering, max_new_tokens=a.max_new_tokens, seed=a.seed)
    print("\n\n".join(texts))
    if a.out:
        from emolab.storage import write_json

        rows = [{"prompt": p, "text": t, "doses": doses} for p, t in zip(a.prompts, texts, strict=True)]
        write_json(a.out / "steered.json", rows)


def _layers(text: str, words: tuple[str, ...] = ("all", "each", "thirds")) -> str | list[int]:
    try:
        return text if text in words else [int(x) for x in text.split(",")]
    except ValueError:
        raise EmolabError(f"--layers {text!r} is neither {', '.join(words)} nor numbers like 2,3,4") from None


def _sweep(a: argparse.Namespace) -> None:
    from emolab import EmotionVectors, load_model, sweep

    grid = {"site": a.site, "part": a.part, "layers": [_layers(x) for x in a.layers], "op": a.op}
    vectors = EmotionVectors.load(a.vectors)
    model = load_model(a.model, dtype=a.dtype)
    options = {"alphas": a.alphas, "emotions": a.emotions, "controls": a.controls, "grid": grid}
    table = sweep(model, vectors, _queries(a, "heldout"), out=a.out, seed=a.seed, **options)
    print(f"{len(table)} texts in {a.out / 'sweep.parquet'}")


def _score(a: argparse.Namespace) -> None:
    import pandas as pd

    from emolab import load_model, score
    from emolab.storage import write_parquet

    path = a.out / "sweep.parquet"
    try:
        table = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises a zoo of its own
        raise EmolabError(f"{path} is missing or damaged; run emolab sweep --out {a.out} first") from error
    if "row" in table:
        raise EmolabError(f"{path} is unfinished; run the same emolab sweep --out {a.out} again, it goes on from there")
    scored = score(table, model=load_model(a.model, dtype=a.dtype))
    write_parquet(a.out / "scores.parquet", scored)
    hits = scored.assign(target=scored["top"] == scored["emotion"])
    print(
        hits.groupby(["emotion", "control", "alpha"])[["target", "adherence", "perplexity"]].mean().round(3).to_string()
    )


def _figures(a: argparse.Namespace) -> None:
    from emolab.plot.run import run_figures

    print("\n".join(map(str, run_figures(a.out))))


def _info(a: argparse.Namespace) -> None:
    from emolab import EmotionVectors
    from emolab.plot.run import read_summary

    file = a.path / "vectors.safetensors" if a.path.is_dir() else a.path
    if a.path.is_dir() and ((a.path / "summary.json").exists() or not file.exists()):
        print(json.dumps(read_summary(a.path), indent=1))
    else:
        vectors = EmotionVectors.load(file)
        print(vectors)
        print(json.dumps(vectors.meta, indent=1))


if __name__ == "__main__":
    sys.exit(main())
