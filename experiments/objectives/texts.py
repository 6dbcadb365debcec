"""Write the files of these studies: `python texts.py FOLDER`, with UNITSPHERE_DATA set.

`sentences.txt`: Wikipedia sentences and those of SNLI's development set, without any that is in an STS or SICK test or
development file. `transfer.txt`: 7,680 texts in random order, two thirds of them sentences, one third docstrings
(summaries and bodies) of the packages that data=docstrings trains on. Both one text a line. `entailment.jsonl`: SNLI's
development pairs with score 1 for entailment and 0 for contradiction, without the neutral ones.
"""

import gzip
import json
import random
import sys
from pathlib import Path

from unitsphere import paths
from unitsphere.data.docstrings import TRAIN, build_corpus

STS = ("sts12-16/*.jsonl", "stsb-en/dev.jsonl", "stsb-en/test.jsonl", "sick-r/trial.jsonl", "sick-r/test.jsonl")


def sentences(data: Path) -> list[str]:
    held_out = {
        json.loads(line)[side].strip().lower()
        for pattern in STS
        for file in data.glob(pattern)
        for line in file.open(encoding="utf-8")
        for side in ("sentence1", "sentence2")
    }
    with gzip.open(data / "corpus-en-wiki/sentences.txt.gz", "rt", encoding="utf-8") as file:
        found = [line.strip() for line in file]
    for line in (data / "snli-dev/pairs.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        found += [row["sentence1"].strip(), row["sentence2"].strip()]
    return [text for text in dict.fromkeys(found) if text and text.lower() not in held_out]


def docstrings() -> list[str]:
    table = build_corpus()
    train = table[table.package.isin(TRAIN)]
    return list(dict.fromkeys([*train.summary, *train.document]))


def main(folder: Path) -> None:
    data = paths.data()
    assert data is not None, "UNITSPHERE_DATA names the folder of the data sets"
    general, domain = sentences(data), docstrings()
    draw = random.Random(1)
    transfer = draw.sample(general, 5120) + draw.sample(domain, 2560)
    draw.shuffle(transfer)
    for name, texts in (("sentences.txt", general), ("transfer.txt", transfer)):
        (folder / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
        print(folder / name, len(texts))
    with (data / "snli-dev/pairs.jsonl").open(encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["label"] != "neutral"]
    pairs = [
        {"sentence1": row["sentence1"], "sentence2": row["sentence2"], "score": float(row["label"] == "entailment")}
        for row in rows
    ]
    (folder / "entailment.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    print(folder / "entailment.jsonl", len(pairs))


main(Path(sys.argv[1]))
