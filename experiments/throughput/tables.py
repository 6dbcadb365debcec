"""Seconds of `unitsphere table` against the number of runs: python experiments/throughput/tables.py RUN 10 100 1000

RUN is copied so often, without its model, each copy with a seed of its own.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

KEPT = ("config.yaml", "overrides.yaml", "run.json", "metrics.json", "scores")

run, *counts = sys.argv[1:]
for count in map(int, counts):
    with TemporaryDirectory() as place:
        for seed in range(count):
            copy = Path(place) / f"s{seed}_20260101-000000"
            copy.mkdir()
            for name in KEPT:
                source = Path(run) / name
                if source.is_dir():
                    shutil.copytree(source, copy / name)
                else:
                    text = source.read_text(encoding="utf-8")
                    (copy / name).write_text(text.replace("seed: 1\n", f"seed: {seed}\n"), encoding="utf-8")
        began = time.perf_counter()
        subprocess.run(["unitsphere", "table", place, "baseline=before"], check=True, stdout=subprocess.DEVNULL)
        sys.stdout.write(f"{count} runs: {time.perf_counter() - began:.2f} s\n")
