"""Write a retrieval set whose answers begin beyond token 512: `python documents.py FOLDER [TOKENS]`.

Each document is one of Cranfield's relevant abstracts behind unrelated English filler: abstracts of SciFact (medicine),
as many as make 512 tokens or more of all-MiniLM-L6-v2's. The queries and judgments are Cranfield's, for 150 of its
relevant documents. An encoder that reads 512 tokens or less has read nothing that the query asks for.
TOKENS=0 leaves the filler out. Needs UNITSPHERE_DATA. Deterministic.
"""

import json
import random
import sys
from pathlib import Path

from unitsphere.encoders.minilm import minilm
from unitsphere.formats import beir

DOCUMENTS = 150


def main(folder: Path, beyond: int = 512) -> None:
    tokenizer = minilm().tokenizer
    fillers = list(beir.read_texts(beir.find("scifact"), "corpus").values())
    random.Random(0).shuffle(fillers)
    lengths = [len(ids) for ids in tokenizer(fillers, add_special_tokens=False, verbose=False)["input_ids"]]
    source = beir.find("cranfield")
    texts, queries = beir.read_texts(source, "corpus"), beir.read_texts(source, "queries")
    judged = {split: relevant(qrels or {}) for split, qrels in beir.judgments(source).items()}
    kept = [document for qrels in judged.values() for grades in qrels.values() for document in grades]
    random.Random(1).shuffle(kept)
    at, corpus = 0, {}
    for document in list(dict.fromkeys(kept))[:DOCUMENTS]:
        before, tokens = [], 0
        while tokens < beyond:
            before.append(fillers[at % len(fillers)])
            tokens += lengths[at % len(fillers)]
            at += 1
        corpus[document] = " ".join([*before, texts[document]])
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    write(folder / "corpus.jsonl", corpus)
    write(folder / "queries.jsonl", queries)
    for split, qrels in judged.items():
        rows = [f"{q}\t{d}\t{g}\n" for q, grades in qrels.items() for d, g in grades.items() if d in corpus]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    counts = sorted(len(ids) for ids in tokenizer(list(corpus.values()), verbose=False)["input_ids"])
    print(f"{len(corpus)} documents of {counts[0]} to {counts[-1]} tokens, median {counts[len(counts) // 2]}")


def relevant(qrels: beir.Qrels) -> beir.Qrels:
    return {q: {d: grade for d, grade in grades.items() if grade >= 1} for q, grades in qrels.items()}


def write(file: Path, texts: dict[str, str]) -> None:
    file.write_text("".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in texts.items()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
