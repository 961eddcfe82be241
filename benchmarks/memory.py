"""Peak extra memory of extraction for 100 and 3,000 responses: `python benchmarks/memory.py`.

Each in a process of its own, since peaks never go down. What counts is the peak during the passes above what the result
itself takes (4 bytes x responses x layers x d_model a site).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys

from _harness import arguments, random_model, record
from extraction import responses

from emolab.activations import response_means


def measure(n: int) -> dict:
    model = random_model(12, 256)
    table = responses(model, n, 60)
    response_means(model, table.head(24), batch_size=8, progress=False)  # what a first call allocates is not extraction
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    means = response_means(model, table, batch_size=8, progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = sum(x.nbytes for x in means.means.values()) / 2**10
    return {"peak": peak / 2**10, "extra": (peak - before) / 2**10, "result": result / 2**10}


def main() -> None:
    a = arguments()
    found = {}
    for n in (100, 300 if a.quick else 3000):
        done = subprocess.run([sys.executable, __file__, "--one", str(n)], capture_output=True, text=True, check=True)
        found[n] = json.loads(done.stdout.splitlines()[-1])
    few, many = found.values()
    rows = []
    for n, x in found.items():
        rows.append({"case": f"{n} responses: peak of the process", "value": round(x["peak"]), "unit": "MiB"})
        rows.append({"case": f"{n} responses: result", "value": round(x["result"], 1), "unit": "MiB"})
    net = (many["peak"] - many["result"]) / (few["peak"] - few["result"])
    rows.append({"case": "peak without result, many over few", "value": round(net, 3), "unit": "x"})
    record("memory of extraction", rows, setting="12 layers, d 256, batch 8, four sites", goal="within 5 %")


if __name__ == "__main__":
    if "--one" in sys.argv:
        print(json.dumps(measure(int(sys.argv[-1]))))
    else:
        main()
