"""Sentences a second of several models side by side: `python speed.py MODEL…`, the first one is the reference.

One thread, 256 sentences of STS-B's development set, five rounds in alternation; prints the median and the ratio to the
reference's, as JSON lines. Only the ratios mean anything beyond the machine.
"""

import json
import statistics
import sys
import time

import torch

from unitsphere import artefact, paths

torch.set_num_threads(1)
data = paths.data()
assert data is not None, "UNITSPHERE_DATA names the folder of the data sets"
rows = [json.loads(line) for line in (data / "stsb-en/dev.jsonl").open(encoding="utf-8")]
sentences = list(dict.fromkeys(row["sentence1"] for row in rows))[:256]
models = {path: artefact.load(path) for path in sys.argv[1:]}
took: dict[str, list[float]] = {path: [] for path in models}
for _ in range(5):
    for path, model in models.items():
        start = time.perf_counter()
        model.encode(sentences)
        took[path].append(time.perf_counter() - start)
reference = statistics.median(took[sys.argv[1]])
for path, model in models.items():
    seconds = statistics.median(took[path])
    parameters = sum(p.numel() for p in model.parameters())
    print(
        json.dumps(
            {
                "model": path,
                "parameters": parameters,
                "MB fp32": round(parameters * 4 / 1e6),
                "sentences/s": round(len(sentences) / seconds, 1),
                "times as fast": round(reference / seconds, 2),
            }
        )
    )
