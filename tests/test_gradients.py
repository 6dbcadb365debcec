"""Every objective through the gradient cache, and through two real processes: the gradients of one process that has the
whole batch at once."""

import os
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from making import batch_of_texts, encoded, model
from unitsphere import paths
from unitsphere.encoders.language_model import with_head
from unitsphere.encoders.pair_scorer import PairScorer
from unitsphere.encoders.tiny import tiny
from unitsphere.losses.anchored import Anchored
from unitsphere.losses.angle import Angle
from unitsphere.losses.cosent import CoSENT
from unitsphere.losses.cosine import CosineSimilarity
from unitsphere.losses.cross_encoder import RankedPairs, ScoredPairs
from unitsphere.losses.distil import Relational, Response
from unitsphere.losses.distil_features import Features
from unitsphere.losses.infonce import InfoNCE
from unitsphere.losses.l2sp import L2SP
from unitsphere.losses.margin_mse import MarginMSE
from unitsphere.losses.matryoshka import Matryoshka
from unitsphere.losses.mlm import MaskedLM
from unitsphere.losses.nt_xent import NTXent, ScoredNTXent
from unitsphere.losses.online_contrastive import OnlineContrastive
from unitsphere.losses.projected import Projected
from unitsphere.losses.queue import MemoryQueue
from unitsphere.losses.rtd import ReplacedTokenDetection
from unitsphere.losses.simcse import SimCSE
from unitsphere.losses.sum import Sum
from unitsphere.losses.supcon import SupCon
from unitsphere.losses.triplet import Triplet
from unitsphere.training.chunks import LengthSorted
from unitsphere.training.gather import gather
from unitsphere.training.gradient_cache import GradientCache
from unitsphere.types import Tokens


def teacher():
    return model(dropout=0.0, seed=9, dim=64).eval()


def fixed(tokenizer):
    """A masking that is a function of the token, so that it is the same however rows are shared out."""
    return lambda tokens: (
        Tokens(tokens.ids.masked_fill(_every_third(tokens), tokenizer.mask_token_id), tokens.mask, tokens.prompt),
        _every_third(tokens),
    )


def _every_third(tokens):
    return (tokens.ids % 3 == 0) & (tokens.ids > 4)


def rtd():
    torch.manual_seed(5)
    other = tiny(seed=5, dropout=0.0)
    head = with_head(other)
    return ReplacedTokenDetection(lambda: (head, other.tokenizer), count_padding=False)


LOSSES = {
    "simcse": SimCSE,
    "infonce": lambda: InfoNCE(hard_negative_weight=0.7),
    "symmetric": lambda: InfoNCE(symmetric=True),
    "debiased": lambda: InfoNCE(class_prior=0.1),
    "supcon": lambda: SupCon(views=2),
    "nt_xent": NTXent,
    "triplet": Triplet,
    "cosent": CoSENT,
    "angle": lambda: Sum({"angle": Angle(), "cosent": CoSENT(), "in_batch": ScoredNTXent()}),
    "cosine": CosineSimilarity,
    "online_contrastive": OnlineContrastive,
    "matryoshka": lambda: Matryoshka(InfoNCE(), [32, 8]),
    "queue": lambda: MemoryQueue(InfoNCE(), size=8, momentum=0.5),
    "diffcse": lambda: Projected(Sum({"simcse": SimCSE(), "rtd": rtd()}, {"rtd": 0.5})),
    "mlm": lambda: MaskedLM(partial(with_head, causal=False)),
    "distil_mse": lambda: Response(teacher),
    "distil_relational": lambda: Relational(teacher),
    "distil_features": lambda: Features(teacher),
    "margin_mse": MarginMSE,
    "cross_encoder": lambda: RankedPairs(PairScorer, in_batch=0),
    "cross_encoder_scored": lambda: ScoredPairs(PairScorer),
    "l2sp": lambda: L2SP(InfoNCE(), 2.0),
    "anchored": lambda: Anchored(SimCSE(), 2.0),
}

SAME = {"distil_cosine": "distil_mse", "distil_multilingual": "distil_mse", "mntp": "mlm", "simcse_sup": "infonce"}
ON_BOTH_RANKS = {"anchor": (0, 5), "positive": (1, 4), "negative": (0, 2)}


def test_every_loss_is_among_them():
    options = {file.stem for file in (paths.conf() / "loss").glob("*.yaml")}
    assert {SAME.get(option, option) for option in options} <= LOSSES.keys()


def made(name, dropout):
    """Embedder and loss, with weights that are a function of the name alone."""
    embedder = model(dropout=dropout)
    loss = LOSSES[name]()
    torch.manual_seed(3)
    loss.attach(embedder)
    if isinstance(loss, L2SP | Anchored):  # they pull to the start, so it must be somewhere else
        with torch.no_grad():
            for p in embedder.parameters():
                p.add_(0.1 * torch.randn_like(p))
    for module in loss.modules():
        if isinstance(module, ReplacedTokenDetection | MaskedLM):
            module.mask = fixed(embedder.encoder.tokenizer)
    return embedder, loss.train()


def rows_of(batch, rows):
    """Some rows of a batch, as a rank has them."""
    owned = [m for m, owner in enumerate(batch.negative_rows.tolist()) if owner in rows]
    at = {"anchor": rows, "positive": rows, "negative": owned}
    return replace(
        batch,
        tokens={c: [t[i] for i in at[c]] for c, t in batch.tokens.items()},
        texts={c: [t[i] for i in at[c]] for c, t in batch.texts.items()},
        text_ids={c: ids[at[c]] for c, ids in batch.text_ids.items()},
        negative_rows=torch.tensor([rows.index(batch.negative_rows[m]) for m in owned]),
        row_ids=batch.row_ids[rows],
        labels=batch.labels[rows],
        scores=batch.scores[rows],
    )


def gradients(embedder, loss):
    both = torch.nn.ModuleDict({"embedder": embedder, "loss": loss})  # names a shared parameter once
    return {n: p.grad for n, p in both.named_parameters() if p.requires_grad}


def close(got, wanted):
    for name, gradient in wanted.items():
        if gradient is None:
            assert got[name] is None or not got[name].any(), name
        else:
            atol = 1e-5 * max(1.0, float(gradient.abs().max()))
            torch.testing.assert_close(got[name], gradient, atol=atol, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", LOSSES)
def test_the_cache_has_the_gradient_of_the_whole_batch(name):
    """Without dropout: passes of a few texts, recomputed, against one padded pass of all."""
    outs = []
    for cache_tokens in (None, 60):
        embedder, loss = made(name, dropout=0.0)
        out = loss(encoded(embedder, batch_of_texts(), loss, 1, cache_tokens)).total
        out.backward()
        outs.append((out, gradients(embedder, loss)))
    torch.testing.assert_close(outs[1][0], outs[0][0], atol=1e-5, rtol=1e-5)
    close(outs[1][1], outs[0][1])


@pytest.mark.parametrize("name", LOSSES)
def test_the_cache_restores_the_random_state(name, monkeypatch):
    """With dropout: passes recomputed, against the same passes kept in memory under the same seed."""
    outs = []
    for _ in range(2):
        embedder, loss = made(name, dropout=0.3)
        torch.manual_seed(7)
        out = loss(encoded(embedder, batch_of_texts(), loss, cache_tokens=60)).total
        out.backward()
        outs.append((out, gradients(embedder, loss)))
        monkeypatch.setattr(GradientCache, "compute", LengthSorted.compute)
    torch.testing.assert_close(outs[1][0], outs[0][0], atol=1e-5, rtol=1e-5)
    close(outs[1][1], outs[0][1])
    assert all(g is None or torch.isfinite(g).all() for g in outs[1][1].values())


def worker(rank, port, folder):
    """Every loss, one after the other."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for name in LOSSES:
        embedder, loss = made(name, dropout=0.0)
        batch = rows_of(batch_of_texts(equal=ON_BOTH_RANKS), [[0, 1, 2, 3], [4, 5]][rank])
        out = loss(gather(encoded(embedder, batch, loss))).total
        out.backward()
        got = gradients(embedder, loss)
        for gradient in got.values():
            if gradient is not None:
                dist.all_reduce(gradient)
                gradient /= 2  # DDP takes the mean over ranks
        torch.save((out.item(), got), folder / f"{name}{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(29500 + os.getpid() % 1000, folder), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_two_ranks_have_the_gradient_of_one(name, of_two_ranks):
    embedder, loss = made(name, dropout=0.0)
    whole = loss(encoded(embedder, batch_of_texts(equal=ON_BOTH_RANKS), loss)).total
    whole.backward()
    wanted = gradients(embedder, loss)
    for rank in range(2):
        total, got = torch.load(of_two_ranks / f"{name}{rank}.pt")
        assert total == pytest.approx(whole.item(), abs=1e-5)
        close(got, wanted)
