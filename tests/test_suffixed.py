"""Results under other names: metrics, items and protocol go by one task, so that tables, stops and tests find them."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from unitsphere.errors import UsageError
from unitsphere.evaluation.noise import typos
from unitsphere.evaluation.robustness import Robustness
from unitsphere.evaluation.sts import STS
from unitsphere.evaluation.suffixed import suffixed
from unitsphere.evaluation.truncation import Truncation
from unitsphere.report.comparability import refuse_mixed_protocols
from unitsphere.report.records import Record
from unitsphere.report.significance import scores
from unitsphere.types import Result


def embed(texts, role, max_length=None, prompt=None):
    return np.stack([np.random.default_rng(list(f" {t}".encode())).normal(size=8) for t in texts]).astype("f4")


@pytest.fixture
def sts(tmp_path):
    for task in ("a", "b"):
        rows = [{"sentence1": f"{task} {i}", "sentence2": f"other {i}", "score": i % 4} for i in range(9)]
        (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"a": "a.jsonl", "b": "b.jsonl"}
    return lambda split, own: STS(split, files, {"simcse": files}, {}, path=str(tmp_path))


def test_the_ending_is_the_tasks():
    table = pd.DataFrame()
    names = ("fact", "fact-worst", "factory", "factory-worst", "map")
    result = Result(
        {"fact/mrr@10": 0.1, "factory/mrr@10": 0.2},
        "fact/avg",
        dict.fromkeys(names, table),
        {"fact": {"a": 1}, "whole": {}},
    )
    found = suffixed(result, "_x")
    assert found.metrics == {"fact_x/mrr@10": 0.1, "factory_x/mrr@10": 0.2} and found.primary == "fact_x/avg"
    assert list(found.items) == ["fact_x", "fact_x-worst", "factory_x", "factory_x-worst", "map_x"]
    assert found.protocol == {"fact_x": {"a": 1}, "whole_x": {}}
    assert suffixed(Result({}, "", {}, {}), "_x") == Result({}, "", {}, {})


def test_every_metric_has_its_items_and_its_protocol(sts, tmp_path):
    noises = {"typos": partial(typos, rate=0.3)}
    for made in (Robustness("test", None, sts, noises), Truncation("test", None, sts, [4])):
        result = made(embed)
        assert {name.partition("/")[0] for name in result.metrics} <= result.protocol.keys()
        folder = tmp_path / type(made).__name__ / "scores" / "test"
        folder.mkdir(parents=True)
        for task, table in result.items.items():
            table.to_parquet(folder / f"{task}.parquet")
        record = Record(folder.parents[1], {}, {}, {})
        ending = "_typos" if isinstance(made, Robustness) else "_dim4"
        assert list(scores(record, f"test/sts{ending}/a")) == [f"sts{ending}-a"]
        assert list(scores(record, f"test/sts{ending}/avg")) == [f"sts{ending}-a", f"sts{ending}-b"]


def test_a_table_refuses_other_noise(sts):
    results = [Robustness("test", None, sts, {"typos": partial(typos, rate=rate)})(embed) for rate in (0.1, 0.2)]
    records = [SimpleNamespace(info={"protocol": dict(result.protocol)}) for result in results]
    for metric in ("sts_typos/avg", "sts_typos/avg_loss", "sts_noisy/avg"):
        assert metric in results[0].metrics
        with pytest.raises(UsageError, match=r"settings.* is typos rate=0.1 and typos rate=0.2"):
            refuse_mixed_protocols(records, [f"test/{metric}"])
