"""Does an instruction change the vector of a text, and does each instruction help its own task?

`python instructions.py write FOLDER` writes the pairs of two tasks over the same texts, docstring summaries:
retrieval.jsonl (a summary and its docstring's body) and clustering.jsonl (two summaries of one module), without a tenth
of the summaries, chosen by their hash.
`python instructions.py score MODEL…` scores models with no instruction, with the right one and with the wrong one, as
JSON lines: retrieval is MRR@10 over networkx, a package never trained on; clustering is the V-measure of k-means, mean
of five starts, against the modules of the summaries left out, and of scikit-learn's, a package never trained on.
"""

import hashlib
import json
import random
import sys
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.metrics import v_measure_score

from unitsphere import artefact
from unitsphere.data.docstrings import TRAIN, Docstrings, build_corpus
from unitsphere.evaluation.retrieval import Retrieval

RETRIEVE = "Find the documentation of this summary: "
CLUSTER = "Name the module of this summary: "


def held_out(table: pd.DataFrame) -> pd.Series:
    return table.summary.map(lambda text: hashlib.sha256(text.encode()).digest()[0] % 10 == 0)


def write(folder: Path) -> None:
    table = build_corpus()
    table = table[table.package.isin(TRAIN)]
    table = table[~held_out(table)]
    draw, clustering = random.Random(1), []
    for _, of_module in table.groupby("module"):
        texts = of_module.summary.drop_duplicates().tolist()
        draw.shuffle(texts)
        if len(texts) > 1:
            clustering += zip(texts, islice(cycle(texts), 1, None), strict=False)
    for name, pairs in (("retrieval", zip(table.summary, table.document, strict=True)), ("clustering", clustering)):
        lines = [json.dumps({"anchor": a, "positive": b}, ensure_ascii=False) + "\n" for a, b in pairs]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def score(path: str) -> None:
    model = artefact.load(path)
    table = build_corpus().drop_duplicates("summary")
    of_train = table[table.package.isin(TRAIN)]
    sets = {"modules trained on": of_train[held_out(of_train)], "scikit-learn": table[table.package == "sklearn"]}
    columns = {"anchor": "summary", "positive": "document"}
    retrieval = Retrieval("test", own=Docstrings(columns, eval_max_length=32).splits.test)

    for name, instruction in (("none", ""), ("retrieval", RETRIEVE), ("clustering", CLUSTER)):
        ranked = retrieval(
            lambda texts, role, max_length, prompt=None, before=instruction: model.encode(
                texts, prompt=before if role == "query" else "", max_length=(max_length or 32) + 16
            )
        )
        row = {
            "model": path,
            "instruction": name,
            "retrieval MRR@10": round(100 * ranked.metrics["docstrings/mrr@10"], 2),
        }
        for of_set, rows in sets.items():
            sizes = rows.module.value_counts()
            rows = rows[rows.module.isin(sizes[sizes >= 20].index)]
            texts, modules = rows.summary.tolist(), rows.module.tolist()
            vectors = model.encode(texts, prompt=instruction, max_length=48)
            found = [KMeans(len(set(modules)), n_init=1, random_state=s).fit_predict(vectors) for s in range(5)]
            row[f"V-measure, {of_set}"] = round(100 * float(np.mean([v_measure_score(modules, f) for f in found])), 2)
        other = model.encode(texts, prompt=RETRIEVE, max_length=48)
        row["cosine to the retrieval vector"] = round(float((vectors * other).sum(axis=1).mean()), 3)
        print(json.dumps(row))


if sys.argv[1] == "write":
    write(Path(sys.argv[2]))
else:
    for model_path in sys.argv[2:]:
        score(model_path)
