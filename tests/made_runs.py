"""Run folders as `train` leaves them, without a model."""

import json

import numpy as np
import pandas as pd
import yaml
from scipy import stats

METRIC = "docs/mrr@10"
PROTOCOL = {"docs": {"kind": "retrieval", "max_length": 32, "queries": 300}, "sts": {"kind": "sts"}}


def items(rng, level, n=300):
    return pd.DataFrame({"query": [f"q{i}" for i in range(n)], "mrr@10": np.clip(rng.normal(level, 0.3, n), 0, 1)})


def pairs(rng, noise, n=400):
    gold = np.random.default_rng(5).uniform(0, 5, n)
    return pd.DataFrame(
        {
            "sentence1": [f"a{i}" for i in range(n)],
            "sentence2": [f"b{i}" for i in range(n)],
            "score": gold,
            "prediction": gold + rng.normal(0, noise, n),
        }
    )


def made(folder, loss="infonce", pooling="mean", seed=1, level=0.5, temperature=0.05, noise=2.0, **info):
    """A run folder as `train` leaves it, without a model."""
    rng = np.random.default_rng([seed, round(1000 * level), len(loss), len(pooling)])
    folder = folder / f"{loss}-{pooling}-{seed}-{len(list(folder.glob('*'))) if folder.exists() else 0}"
    of_stage = {stage: items(rng, level - drop) for stage, drop in (("test", 0), ("before", 0.2), ("last", 0.01))}
    sts = {"sts-sts12": pairs(rng, noise), "sts-stsb": pairs(rng, noise / 2)}
    metrics = {f"{stage}/{METRIC}": table["mrr@10"].mean() for stage, table in of_stage.items()}
    metrics |= {
        f"test/sts/{k.removeprefix('sts-')}": float(stats.spearmanr(t.prediction, t.score).statistic)
        for k, t in sts.items()
    }
    metrics["test/sts/avg"] = (metrics["test/sts/sts12"] + metrics["test/sts/stsb"]) / 2
    metrics |= {f"dev/{METRIC}": metrics[f"test/{METRIC}"] + 0.02, "test/geometry/uniformity": -2.0 - level}
    for stage, table in of_stage.items():
        (folder / "scores" / stage).mkdir(parents=True)
        table.to_parquet(folder / "scores" / stage / "docs.parquet")
    for name, table in sts.items():
        table.to_parquet(folder / "scores" / "test" / f"{name}.parquet")
    record = {
        "status": "done",
        "choices": {"loss": loss, "pooling": pooling, "experiment": None},
        "started": f"2026-01-01T00:00:{len(list(folder.parent.iterdir())):02}",
        "versions": {"torch": "2.13.0"},
        "git": {"commit": "a" * 40, "dirty": False},
        "data": {"name": "docs", "train": {"rows": 9, "sha256": "1" * 64}},
        "looks": [{"step": s, "metrics": {}} for s in (0, 5, 10)],
        "protocol": PROTOCOL,
        "primary": METRIC,
    }
    config = {"loss": {"_target_": f"x.{loss}", "temperature": temperature}, "pooling": {"_target_": "y"}, "seed": seed}
    (folder / "run.json").write_text(json.dumps(record | info))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"name": folder.name}))
    return folder
