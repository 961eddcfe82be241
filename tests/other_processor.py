"""A processor that nobody has, as a pytest plugin: `pytest -p tests.other_processor tests/vectors/test_vectors.py`.

Matrix products, attention, softmax and layer norm come out right but for the last digits, and which elements are off
by how much depends on the shapes: the same computation in the same shapes keeps its bits, and nothing else does. A test
that fails here compares sums of floating numbers over other shapes or batches exactly, or with a tolerance that is no
more than luck, and will fail on somebody's machine.
"""

from __future__ import annotations

import threading
import zlib
from functools import lru_cache

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
ROUNDED = {
    aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten._softmax, aten._log_softmax, aten.native_layer_norm,
    aten._scaled_dot_product_flash_attention_for_cpu, aten.silu, aten.gelu,
}  # fmt: skip


class OtherProcessor(TorchDispatchMode):
    """While active, the results of the operations in ROUNDED are a few last digits off."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:  # what is made of other operations is taken apart, as outside torch.inference_mode
            found = func.decompose(*args, **(kwargs or {}))
        if found is not NotImplemented:
            return found
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket not in ROUNDED:
            return found
        shapes = tuple(tuple(x.shape) for x in args if isinstance(x, torch.Tensor))
        values = found[0] if isinstance(found, tuple) else found
        if values.is_floating_point() and values.device.type == "cpu":
            values.mul_(_digits(func.overloadpacket, shapes, tuple(values.shape), values.dtype))
        return found


@lru_cache(maxsize=512)
def _digits(operation, shapes, shape, dtype) -> torch.Tensor:
    """One, give or take up to two last digits; the same for the same operation and shapes."""
    seed = zlib.crc32(repr((str(operation), shapes)).encode())
    step = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    return 1 + step.to(dtype) * torch.finfo(dtype).eps


def pytest_configure(config):
    OtherProcessor().__enter__()  # until the process ends
    run = threading.Thread.run

    def run_there(self):
        with OtherProcessor():  # a mode holds for one thread
            run(self)

    threading.Thread.run = run_there
