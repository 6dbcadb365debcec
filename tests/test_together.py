"""Two real processes evaluate together: the numbers of one process, and no process that waits for one that failed."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from conftest import command
from making import model
from unitsphere import ranks
from unitsphere.errors import UsageError
from unitsphere.evaluation.retrieval import Retrieval
from unitsphere.evaluation.score import score
from unitsphere.runs import Run
from unitsphere.training.module import EmbeddingModule
from unitsphere.training.together import SharedEmbed, clock, together
from unitsphere.types import Result, RetrievalSet

WORDS = ("sort", "tree", "graph", "array", "find", "path", "node")
TEXTS = [f"{a} the {b} of {c}" for a in WORDS for b in WORDS for c in WORDS]


def made():
    corpus = {f"d{i}": text for i, text in enumerate(TEXTS)}
    queries = {f"q{i}": " ".join(reversed(TEXTS[i].split())) for i in range(0, len(TEXTS), 9)}
    return RetrievalSet("made", corpus, queries, {f"q{i}": {f"d{i}": 1} for i in range(0, len(TEXTS), 9)})


class FailsOn:
    """An evaluator that fails on one rank, before, between or after the vectors."""

    def __init__(self, rank, when):
        self.rank, self.when = rank, when

    def __call__(self, embed):
        for moment in range(3):
            if moment == self.when and dist.get_rank() == self.rank:
                raise ValueError("no more paper")
            if moment < 2:
                embed([f"{moment} {text}" for text in TEXTS[:9]], "query")
        return Result({"made/x": float(dist.get_rank())}, "made/x", {}, {})


def worker(rank, port, divide, results):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    embedder, counted = model(dropout=0), []

    def counting(texts, *more):
        counted.append(len(texts))
        return embedder.embed(texts, *more)

    embed = SharedEmbed(counting, torch.device("cpu"), divide)
    metrics = together(lambda: score([Retrieval("test", made())], embed)).metrics
    module = EmbeddingModule(embedder, None, None, [Retrieval("test", replace(made(), max_length=5))])
    module.score_dev()
    vectors = embed(TEXTS[:5], "query"), embed(TEXTS[:1], "query")
    done = {"read": module.read_dev, "metrics": metrics, "count": sum(counted), "vectors": vectors}
    done["stopped"] = together(lambda: score([Retrieval("test", made())], embed, 1e-9, clock)).protocol
    for when in range(3):
        try:
            together(lambda when=when: score([FailsOn(1, when)], embed))
        except (ValueError, UsageError) as error:
            done[when] = f"{type(error).__name__}: {error}"
    done["agreed"] = together(lambda: score([FailsOn(5, 0)], embed)).metrics
    results[rank] = done
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("divide", [True, False])
def test_two_ranks_score_like_one_and_fail_together(divide):
    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(worker, args=(31500 + os.getpid() % 1000, divide, results), nprocs=2)
    embedder = model(dropout=0)
    alone = score([Retrieval("test", made())], embedder.embed).metrics
    a, b = results[0], results[1]
    assert a["metrics"] == b["metrics"] and a["metrics"] == pytest.approx(alone, abs=1e-6)
    assert 0 < alone["made/mrr@10"] < 1
    with embedder.counting() as read:
        score([Retrieval("test", replace(made(), max_length=5))], embedder.embed)
    assert a["read"] == b["read"] == read and 0 < read["document", 5][1] <= read["document", 5][0]
    total = len(TEXTS) + len(made().queries)
    assert a["count"] + b["count"] == pytest.approx(total + 6 if divide else 2 * (total + 6), abs=2)
    for mine in (a, b):
        np.testing.assert_allclose(mine["vectors"][0], embedder.embed(TEXTS[:5], "query"), atol=1e-6)
        np.testing.assert_allclose(mine["vectors"][1], embedder.embed(TEXTS[:1], "query"), atol=1e-6)
        assert mine["stopped"] == {"retrieval": {"stopped": "nothing finished"}} and mine["agreed"] == {"made/x": 0.0}
    for when in range(3):
        assert b[when] == "ValueError: no more paper"
        assert a[when] == "FailedElsewhere: rank 1 failed: ValueError: no more paper"


def test_one_process_is_left_alone():
    ranks.all_well()
    assert ranks.from_first("x") == "x"
    with pytest.raises(ValueError, match="mine"):
        ranks.all_well(ValueError("mine"))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_of_two_ranks_ends_when_one_fails(pairs, tmp_path, trainer, rank):
    """The evaluator is somebody's own; `command` gives up after five minutes, the process group would after thirty."""
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "mine.yaml").write_text(f"mine:\n  _target_: mine.Mine\n  rank: {rank}\n")
    (tmp_path / "mine.py").write_text(
        "import os\n"
        "from unitsphere.types import Result\n"
        "class Mine:\n"
        "    def __init__(self, split, own, rank):\n        self.split, self.rank = split, rank\n"
        "    def held(self):\n        return {}\n"
        "    def __call__(self, embed):\n"
        "        z = embed([f'text {i}' for i in range(9)], 'query')\n"
        "        if self.split == 'dev' and int(os.environ.get('LOCAL_RANK', 0)) == self.rank:\n"
        "            raise ValueError('no more paper')\n"
        "        z = embed([f'word {i}' for i in range(9)], 'query')\n"
        "        return Result({'mine/x': float(z.mean())}, 'mine/x', {}, {'mine': {}})\n"
    )
    done = command(
        "train", "-cd", tmp_path, "eval=mine", "encoder=tiny", "encoder.depth=2", "loss=infonce", "data=pairs",
        f"data.path={pairs}", "data.batch_size=16", "trainer.max_steps=4", "trainer.accelerator=cpu",
        f"trainer={trainer}", "trainer.threads=1", f"outputs={tmp_path}/out", cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "no more paper" in done.stderr
    (run,) = (Run(file.parent) for file in (tmp_path / "out").rglob("run.json"))
    assert run.info["status"] in ("failed", "killed")
