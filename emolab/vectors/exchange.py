"""Vectors from elsewhere: the paper's published files, plain tensors; and how they agree with one's own.

>>> import emolab
>>> theirs = from_published("EMVector/qwen2.5")
>>> theirs.sites, theirs.part("specific").emotions
(('attn',), ('anger', 'disgust', 'fear', 'joy', 'sadness'))
>>> emolab.geometry.similarity.vector_agreement(ours, theirs, site="attn", part="specific")

Imported vectors do not know the norm of the residual stream (`resid_norm` is 0), so doses in units of it are refused,
nor what they were extracted from, so there are no shuffled-label controls; all else works. Without `model=` they carry
no fingerprint and fit every model of their shape; with it they are bound to that one. Control vectors of llama.cpp and
repeng: `emolab.steering.gguf`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError, FileError, shown
from emolab.base.labels import order
from emolab.base.storage import read_json, user_path
from emolab.models.model import Model
from emolab.vectors.activations import check_sites
from emolab.vectors.vectors import EmotionVectors, check_vectors

_PUBLISHED = 'one file an emotion, named like qwen2_5_7b_joy.json, with {"0": [[d_model numbers]], "1": ...}'


def from_published(path: str | Path, *, model: Model | None = None) -> EmotionVectors:
    """The vectors published with arXiv 2502.04075: a folder with one JSON file an emotion, {"0": [[numbers]], ...}.

    The emotion is what follows the last "_" of a file's name; other than .json files are passed over. Site "attn": the
    authors' code adds the vectors to the attention output of every layer, at the last position (`Steering` with
    site="attn" does the same). They are stored as they are, whole.

    Raises EmolabError for a folder without such files, for a file that is no complete list of layers of equal length
    with finite numbers, and for a model of another shape.

    >>> vectors = from_published("EMVector/qwen2.5"); vectors.meta["source"]
    'published'
    """
    folder = user_path(path)
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [file for file in entries if file.suffix == ".json" and not file.name.startswith(".")]
    if not files:
        deeper = [x.name for x in entries if x.is_dir() and not x.name.startswith(".")]
        hint = f"; it holds the folders {', '.join(deeper[:6])}: name one of them" if deeper else ""
        raise EmolabError(f"no .json file in {str(path)!r}; expected a folder with {_PUBLISHED}{hint}")
    named: dict[str, Path] = {}
    for file in files:
        name, _, emotion = file.stem.rpartition("_")
        if not name or not emotion or emotion in named:
            fault = "a second file of that emotion" if emotion in named else "no <name>_<emotion>.json"
            raise EmolabError(f"{file} is {fault}; expected {_PUBLISHED}, and no other .json file")
        named[emotion] = file
    data = {emotion: _published_layers(file) for emotion, file in named.items()}
    names = {file.stem.rpartition("_")[0] for file in files}
    origin = {"model": names.pop() if len(names) == 1 else folder.name}
    return assembled(data, "attn", "published", folder, model, origin)


def _published_layers(file: Path) -> Float[Tensor, "layer d_model"]:
    """Each layer's numbers, [d] or [[d]], as float32."""
    layers = read_json(file, f"expected {_PUBLISHED}")
    if not isinstance(layers, dict) or not layers:
        raise EmolabError(f"{file} holds no layers; expected {_PUBLISHED}")
    if set(layers) != set(map(str, range(len(layers)))):
        raise EmolabError(f"{file} has layers {shown(sorted(layers))}; expected '0', '1', '2', ..., each once")
    rows: list[np.ndarray] = []
    for layer in range(len(layers)):
        try:
            x = np.asarray(layers[str(layer)])
        except ValueError:  # ragged
            x = np.asarray(None)
        if x.dtype.kind not in "iuf" or x.size == 0 or x.shape not in ((x.size,), (1, x.size)):
            shape = f"shape {list(x.shape)}" if x.dtype.kind in "iuf" else "something else than numbers in one row"
            raise EmolabError(f"{file}, layer {layer}: {shape}; expected [[d_model numbers]], one row")
        with np.errstate(over="ignore"):
            rows.append(x.ravel().astype(np.float32))
        if not np.isfinite(rows[-1]).all():
            raise EmolabError(f"{file}, layer {layer}: NaN, infinity or a number beyond float32; get the file again")
        if len(rows[-1]) != len(rows[0]):
            raise EmolabError(f"{file}, layer {layer}: {len(rows[-1])} numbers, where layer 0 has {len(rows[0])}")
    return torch.from_numpy(np.stack(rows))


def from_tensors(path: str | Path, *, site: str, model: Model | None = None) -> EmotionVectors:
    """Vectors of a plain safetensors file: a tensor `joy` [layer, d_model], or for each layer `joy.0` [d_model].

    Site "head" has a head axis before d_model. Layers count from 0 and are all there; pad with zeros where a vector
    has none (a residual stream that starts with the embeddings has one row too many: drop it). Pickles (.pt, .bin) are
    never opened, since loading one runs code: turn them into safetensors where you trust them.

    Raises EmolabError for an unknown site, a file that is damaged, empty or of emolab's own format, names and shapes
    other than these, NaN, and a model of another shape.

    >>> safetensors.torch.save_file({"joy": joy, "fear": fear}, "mine.safetensors")
    >>> from_tensors("mine.safetensors", site="resid").emotions
    ('fear', 'joy')
    """
    from safetensors import SafetensorError, safe_open

    check_sites(site)
    try:
        with safe_open(str(user_path(path)), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} is no whole safetensors file ({error}); pickles are never read") from error
    if header.get("format", "").startswith("emolab-"):
        raise EmolabError(f"{path} was written by emolab; use EmotionVectors.load")
    axes = 3 if site == "head" else 2
    data: dict[str, Tensor] = {}
    single: dict[str, dict[int, Tensor]] = {}
    for name, x in sorted(tensors.items()):
        split = re.fullmatch(r"(.+)\.(\d{1,4})", name)
        if x.is_floating_point() and x.ndim == axes:
            data[name] = x.float()
        elif x.is_floating_point() and x.ndim == axes - 1 and split:
            single.setdefault(split[1], {})[int(split[2])] = x.float()
        else:
            wanted = "[layer, head, d_model] or [head, d_model]" if site == "head" else "[layer, d_model] or [d_model]"
            raise EmolabError(
                f"{path} holds {name!r}, {x.dtype} {list(x.shape)}; expected for each emotion a tensor or, for each "
                f"layer, emotion.layer: {wanted}, floating point"
            )
    for emotion, by_layer in single.items():
        numbers = sorted(by_layer)
        shapes = {tuple(x.shape) for x in by_layer.values()}
        if numbers != list(range(len(numbers))) or len(shapes) > 1 or emotion in data:
            raise EmolabError(
                f"{path}: {emotion!r} has layers {numbers}, shapes {sorted(shapes)}; expected each from 0 on, once and "
                "of one shape"
            )
        data[emotion] = torch.stack([by_layer[i] for i in numbers])
    return assembled(data, site, "tensors", user_path(path), model, {"model": user_path(path).stem})


def assembled(
    data: Mapping[str, Tensor], site: str, source: str, path: Path, model: Model | None, known: dict
) -> EmotionVectors:
    """EmotionVectors of one site from {label: [layer, ..., d_model]}, with what little is known of their origin.

    Bound to `model` where one is given: MismatchError if its shape is another, or the file names another model's
    fingerprint.
    """
    if not data:
        raise EmolabError(f"{path} holds no vector")
    emotions = order(data)
    shapes = {emotion: tuple(data[emotion].shape) for emotion in emotions}
    if len(set(shapes.values())) > 1:
        differing = ", ".join(f"{emotion} {list(shape)}" for emotion, shape in shapes.items())
        raise EmolabError(f"the vectors in {path} differ in shape ({differing}); are they of one model?")
    n_layers, *_, d_model = shapes[emotions[0]]
    meta = {"revision": None, "fingerprint": None, **known}
    meta |= {"source": source, "file": path.name, "sites": [site], "emotions": emotions, "part": "whole"}
    meta |= {"n_layers": n_layers, "d_model": d_model}
    stacked = torch.stack([data[emotion] for emotion in emotions])
    vectors = EmotionVectors({site: stacked}, tuple(emotions), stacked.new_zeros(n_layers), meta)
    if model is not None:
        check_vectors(model, vectors)
        vectors.meta |= {"model": model.name, "revision": model.revision, "fingerprint": model.fingerprint}
    return vectors
