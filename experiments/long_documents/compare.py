"""Score one model on one BEIR folder, cut and by each weighting of its windows: `python compare.py MODEL FOLDER`.

The same as `unitsphere evaluate model=MODEL window=… eval=retrieval eval.retrieval.path=FOLDER` five times, but a
window's vector, which does not depend on the weights, is computed once. `learned` is trained on the train queries: 200
steps of InfoNCE (temperature 0.05, Adam, lr 0.05) over all documents, for its weights alone; the encoder stays.
"""

import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from unitsphere import artefact, paths
from unitsphere.embedder import Embedder
from unitsphere.evaluation.retrieval import Retrieval
from unitsphere.formats import beir
from unitsphere.process import quiet
from unitsphere.types import Text, Tokens

MEASURES = ("recall@1", "recall@10", "mrr@10", "ndcg@10")


def main(model: str, folder: str) -> None:
    vectors: dict[bytes, torch.Tensor] = {}

    def loaded(kind: str) -> Embedder:
        node = OmegaConf.load(paths.conf() / "window" / f"{kind}.yaml")
        embedder = artefact.load(model, node)  # type: ignore[arg-type]
        forward = embedder.forward

        def remembered(tokens: Tokens) -> torch.Tensor:
            keys = [ids[mask.bool()].numpy().tobytes() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
            if not vectors.keys() >= set(keys):
                vectors.update(zip(keys, forward(tokens), strict=True))
            return torch.stack([vectors[key] for key in keys])

        embedder.forward = remembered  # type: ignore[method-assign]
        return embedder

    show("cut at the model's limit", artefact.load(model), folder)
    for kind in ("uniform", "position", "length"):
        show(kind, loaded(kind), folder)
    learned = loaded("learned")
    learn(learned, folder)
    show("learned", learned, folder)


def show(name: str, embedder: Embedder, folder: str) -> None:
    metrics = Retrieval("test", path=folder)(embedder.embed).metrics
    of = Path(folder).name
    print(f"| {name} | " + " | ".join(f"{100 * metrics[f'{of}/{m}']:.1f}" for m in MEASURES) + " |", flush=True)


def learn(embedder: Embedder, folder: str) -> None:
    train = beir.read(folder, "train")
    assert embedder.windows is not None
    queries, documents = (list(texts.values()) for texts in (train.queries, train.corpus))
    pairs = [
        (row, list(train.corpus).index(document))
        for row, query in enumerate(train.queries)
        for document, grade in train.qrels[query].items()
        if grade >= 1
    ]
    rows, right = (torch.tensor(side) for side in zip(*pairs, strict=True))
    asked = torch.from_numpy(embedder.encode(queries))
    cut = embedder.windows.split([Text(ids) for ids in embedder.encoder.tokenize(documents)])
    with torch.no_grad():
        z = torch.cat([embedder(embedder.encoder.pad([window])) for window in cut.windows])
    optimizer = torch.optim.Adam(embedder.windows.parameters(), lr=0.05)
    for _ in range(200):
        d = F.normalize(embedder.windows(z, cut), dim=-1)
        loss = F.cross_entropy((asked @ d.T / 0.05)[rows], right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    quiet()
    torch.set_num_threads(1)
    main(*sys.argv[1:])
