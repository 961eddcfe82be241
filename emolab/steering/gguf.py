"""Control vectors of llama.cpp and repeng, in and out: GGUF files with tensors direction.1, direction.2, ...

>>> import emolab
>>> to_gguf(vectors, "joy.gguf", {"joy": 1.0})
>>> from_gguf("joy.gguf").get("resid", emotion="joy", layer=3)       # direction.3

How layers map: llama.cpp adds `direction.i` to the residual stream after block i, counted from 0
(`llama_adapter_cvec::apply`, `build_cvec` before `l_out-i`), and repeng measures and adds it there: it is site "resid",
layer i. For block 0 llama.cpp has no direction: what is exported lacks that layer. Files of other tools (EasySteer)
hold a direction.0, which is read as layer 0; where there is none, what is imported has zeros.
(llama.cpp's own cvector-generator names `direction.i` what it measured after block i-1; it is added after block i.)

What a file cannot hold: llama.cpp adds it at every position, prompt included (here: `Steering(..., positions="all")`;
"generated" is emolab's default), only adds (no ablating, no clamping), and scales all layers by one number
(`--control-vector-scaled joy.gguf:0.5`). Files that say that they are not to be added to the residual stream after a
block (GLP projects, others work on heads, under the same names of tensors) are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emolab import __version__
from emolab.base.errors import EmolabError, FileError
from emolab.base.storage import atomic, user_path
from emolab.base.tables import origin
from emolab.models.model import Model
from emolab.steering.steering import Steering
from emolab.vectors.exchange import assembled
from emolab.vectors.vectors import EmotionVectors

ARCH = "controlvector"
MAX_LAYERS = 1000  # more are in a damaged file
_PROVENANCE = "emolab.provenance"  # JSON; other readers pass over keys that they do not know
_KEPT = ("method", "normalize", "token_pos")  # how a file says that it was made
# Last parts of keys that say what is done with a direction, and where; what they say in files of plain control vectors.
_OPERATION = ("mode", "operation", "op", "apply", "apply_mode", "algorithm")
_ADDS = ("add", "additive", "addition", "direct")
_PLACE = ("hook_point", "hook", "component", "site")
_RESIDUAL = ("residual_stream_post_layer", "residual_stream", "residual", "resid", "hidden_states", "l_out")
_NO_ADDITION = re.compile("project|ablat|orthogonal|rotat|clamp", re.IGNORECASE)  # in a method, or a flag's name


def to_gguf(
    vectors: EmotionVectors,
    path: str | Path,
    doses: dict[str, float],
    *,
    layers: str | Sequence[int] = "all",
    part: str = "whole",
    unit: str = "vector",
) -> None:
    """Write sum of doses times vectors at site "resid" as a control vector; see the module for what is lost.

    layers: "all" that the format can hold, 1 to the last, or some of these; the others get zeros. part, unit: as in
    `Steering`. Raises EmolabError without site "resid" (what is added to an attention output also
    passes through the block's MLP, so no vector in the residual stream is worth the same), for layer 0, a model of one
    layer, and as `Steering`.

    >>> to_gguf(vectors, "bittersweet.gguf", {"joy": 0.5, "sadness": 0.5}, layers=[2, 3, 4], part="specific")
    """
    import gguf

    if "resid" not in vectors.data:
        raise EmolabError(
            f"llama.cpp adds to the residual stream, and these vectors are of {', '.join(vectors.sites)}; extract them "
            'with sites=("resid",)'
        )
    table = Steering(vectors, doses, layers=layers, part=part, unit=unit).table().numpy()
    if len(table) < 2 or (not isinstance(layers, str) and 0 in list(layers)):
        what = "layer 0" if len(table) > 1 else "the only layer of this model"
        raise EmolabError(f"a control vector has no direction for {what}: llama.cpp starts after the second block")
    known = {key: vectors.meta.get(key) for key in ("model", "revision", "fingerprint")}
    how = {"doses": {emotion: float(alpha) for emotion, alpha in doses.items()}, "part": part, "unit": unit}
    how["layers"] = layers if isinstance(layers, str) else [int(layer) for layer in layers]
    with atomic(path) as temporary:
        writer = gguf.GGUFWriter(temporary, ARCH)
        writer.add_string(f"{ARCH}.model_hint", str(known["model"] or "unknown"))
        writer.add_uint32(f"{ARCH}.layer_count", len(table) - 1)
        writer.add_name(" + ".join(f"{alpha:g} {emotion}" for emotion, alpha in how["doses"].items()))
        writer.add_string(_PROVENANCE, json.dumps({**known, **how, "emolab_version": __version__}))
        for layer, direction in enumerate(table[1:], start=1):
            writer.add_tensor(f"direction.{layer}", direction)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def from_gguf(
    path: str | Path | Mapping[str, str | Path], *, emotion: str | None = None, model: Model | None = None
) -> EmotionVectors:
    """Control vectors of llama.cpp or repeng as EmotionVectors of site "resid", zero at layers without a direction.

    path: a file, whose label is `emotion` or else its name; or several, {label: path}. model: binds the vectors to it,
    and says how many layers there are where the last ones have no direction. Numbers of every precision come as
    float32; `meta` keeps the method, normalize and token_pos that a file names. Raises EmolabError for files that are
    damaged or no control vectors, or say that they are not to be added, and for a model of another shape.

    >>> vectors = from_gguf({"joy": "happy.gguf", "sadness": "sad.gguf"}, model=model)
    """
    if isinstance(path, Mapping) and emotion is not None:
        raise EmolabError("give either emotion= with one path, or {label: path}")
    paths = path if isinstance(path, Mapping) else {emotion or user_path(path).stem: path}
    if not paths:
        raise EmolabError("there is no path; expected a GGUF file or {label: path}")
    files = {label: _read(user_path(file)) for label, file in paths.items()}
    counts = [known.pop("layer_count") for _, known in files.values()]
    last = [max(directions) + 1 for directions, _ in files.values()]
    n_layers = max([*last, *(counts if model is None else [model.n_layers])])
    data = {label: _stacked(directions, n_layers) for label, (directions, _) in files.items()}
    origins = [known for _, known in files.values()]
    if len({known["fingerprint"] for known in origins}) > 1:
        raise EmolabError(f"these files are of different models ({', '.join(str(x['model']) for x in origins)})")
    return assembled(data, "resid", "gguf", user_path(next(iter(paths.values()))), model, origins[0])


def _stacked(directions: dict[int, np.ndarray], n_layers: int) -> torch.Tensor:
    rows = np.zeros((n_layers, len(next(iter(directions.values())))), np.float32)
    rows[list(directions)] = list(directions.values())
    return torch.from_numpy(rows)


def _read(path: Path) -> tuple[dict[int, np.ndarray], dict[str, Any]]:
    """Directions by layer, and what the file says of their model and method."""
    import gguf

    class Reader(gguf.GGUFReader):
        def _get(self, offset, dtype, count=1, override_order=None):
            # Without this a length that a damaged file invents is read from beyond its end, element by element.
            if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise ValueError("it ends early")
            return super()._get(offset, dtype, count, override_order)

    try:
        reader = Reader(path)
        single = {key: field for key, field in reader.fields.items() if field.types[:1] != [gguf.GGUFValueType.ARRAY]}
        header = {key: field.contents() for key, field in single.items() if not key.startswith("GGUF.")}
        arch = header.get("general.architecture")
        if sum(int(x.n_bytes) for x in reader.tensors) > len(reader.data):  # many that share one place: a bomb
            raise ValueError("its tensors are larger than the file")
        tensors = {x.name: _numbers(x) for x in reader.tensors} if arch == ARCH else {}
        provenance = json.loads(header.get(_PROVENANCE) or "{}")
    except Exception as error:  # a damaged file raises whatever it makes the reader stumble over
        raise FileError(f"{path} is missing, damaged or no GGUF file ({error})") from error
    if arch != ARCH:
        raise EmolabError(f"{path} has architecture {arch!r}, expected {ARCH!r}: is it a model?")
    _need_addition(path, header)
    directions: dict[int, np.ndarray] = {}
    for name, x in tensors.items():
        number = re.fullmatch(r"direction\.(0|[1-9][0-9]{0,2})", name)  # below MAX_LAYERS
        if number is None or x.ndim != 1 or x.dtype.kind != "f" or not x.size:
            raise EmolabError(
                f"{path} holds {name!r}, {x.dtype} {list(x.shape)}; expected direction.1, direction.2, ... (or from 0 "
                "on), floating point [d_model]"
            )
        directions[int(number[1])] = x
    sizes = {len(x) for x in directions.values()}
    if len(sizes) != 1:
        raise EmolabError(f"{path} holds directions of lengths {sorted(sizes)}; expected one or more, of one length")
    count = header.get(f"{ARCH}.layer_count", 0)
    if not isinstance(count, int) or not (count == 0 or len(directions) <= count < MAX_LAYERS):
        raise EmolabError(f"{path} says that it has {count} layers, and holds {len(directions)}; get the file again")
    made_on = origin(provenance if isinstance(provenance, dict) else {})
    hint = header.get(f"{ARCH}.model_hint")
    known = {"model": None if hint is None else str(hint)}
    known |= {key: made_on[key] for key in ("revision", "fingerprint")}
    kept = {key: header[f"{ARCH}.{key}"] for key in _KEPT if f"{ARCH}.{key}" in header}
    return directions, {**known, **kept, "layer_count": count}


def _numbers(tensor: Any) -> np.ndarray:
    """A tensor's numbers; of a compact type (bfloat16, 8 bits) as float32, of one that holds none as they are."""
    from gguf.quants import dequantize

    data = np.array(tensor.data)
    if data.dtype.kind == "f" or tensor.tensor_type.name in ("I8", "I16", "I32", "I64"):
        return data
    return dequantize(data, tensor.tensor_type)


def _need_addition(path: Path, header: dict[str, Any]) -> None:
    """EmolabError where a file says that its directions are not added to the residual stream after a block."""
    for key, value in header.items():
        owner, _, name = key.rpartition(".")
        text = str(value).strip().lower()
        odd = name in _OPERATION and text not in _ADDS
        odd |= name in ("method", "type") and bool(_NO_ADDITION.search(text))
        odd |= value is True and bool(_NO_ADDITION.search(name))
        odd |= name in _PLACE and text not in _RESIDUAL
        if odd and owner not in ("general", "emolab"):
            raise EmolabError(
                f"{path} says {key} = {value!r}: it is not to be added to the residual stream after a block, and "
                "from_gguf reads nothing else; use the tool that wrote it"
            )
