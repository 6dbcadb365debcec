"""Two real processes that share a batch train exactly like one process that has it all."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

from making import model
from unitsphere.losses.infonce import InfoNCE
from unitsphere.training.gather import gather
from unitsphere.training.sharding import shard, whole
from unitsphere.types import Batch, Embeddings

N, D = 6, 5
OWNERS = [0, 0, 1, 4, 5]  # the ranks have 3 negatives and 2


def made(rows, weight):
    """The rows' part of one batch, encoded by a linear map."""
    generator = torch.Generator().manual_seed(0)
    x = {name: torch.randn(k, D, generator=generator) for name, k in (("a", N), ("b", N), ("p", N), ("n", len(OWNERS)))}
    mine = [m for m, owner in enumerate(OWNERS) if owner in rows]
    ids = {
        "anchor": torch.tensor([0, 1, 2, 3, 3, 5])[rows],
        "positive": torch.tensor([10, 11, 12, 11, 14, 15])[rows],
        "negative": torch.tensor([20, 21, 12, 23, 24])[mine],
    }
    own = torch.tensor([rows.index(OWNERS[m]) for m in mine])
    batch = Batch({}, ids, own, torch.tensor(rows))
    return Embeddings(
        (x["a"][rows] @ weight, x["b"][rows] @ weight), x["p"][rows] @ weight, x["n"][mine] @ weight, batch
    )


def start_weight():
    return (torch.arange(D * D).float().reshape(D, D).sin()).requires_grad_()


def test_one_process_is_left_alone():
    e = made(list(range(N)), start_weight())
    assert gather(e) is e


def sharding_worker(rank, port, results):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    embedder = model(dropout=0.0)
    before = {name: weight.clone() for name, weight in embedder.state_dict().items()}
    vectors = embedder.encode(["a tree", "sort an array"])
    shard(embedder, InfoNCE(), init_device_mesh("cpu", (2,)))
    mine = sum(p.to_local().numel() for p in embedder.parameters())
    same = torch.equal(torch.from_numpy(embedder.encode(["a tree", "sort an array"])), torch.from_numpy(vectors))
    weights = whole(embedder)
    complete = weights.keys() == before.keys() and all(torch.equal(weights[k], before[k]) for k in before)
    results[rank] = (mine / sum(weight.numel() for weight in before.values()), same, complete)
    dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_weights_are_divided_and_encode_the_same():
    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(sharding_worker, args=(30500 + os.getpid() % 1000, results), nprocs=2)
    shares = [results[rank][0] for rank in range(2)]
    assert sum(shares) == pytest.approx(1) and max(shares) < 0.7
    assert all(results[rank][1] for rank in range(2))
    assert results[0][2]  # rank 0 alone gets the whole
