"""A validation and a test set of one's own: nothing held out is trained on, and the folder is read by everything else."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from conftest import WORDS, composed
from unitsphere.cli import split as verb
from unitsphere.cli.evaluate import evaluate
from unitsphere.cli.train import start
from unitsphere.data.rows import Rows
from unitsphere.data.split import divide, strata, write
from unitsphere.data.table import Table
from unitsphere.errors import UsageError
from unitsphere.formats import beir
from unitsphere.similar import Exact, Near
from unitsphere.training.run import train

PAIR = {"anchor": "anchor", "positive": "positive"}
SAME = {"equal": Exact(), "near": Near(0.8, 3)}
COUNTS = {"test": 40, "dev": 20}


def shingles(text):
    plain = " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())
    return {plain[i : i + 3] for i in range(max(1, len(plain) - 2))}


def alike(a, b):
    """Jaccard similarity of the two texts' runs of three characters, slowly."""
    a, b = shingles(a), shingles(b)
    return len(a & b) / len(a | b)


def made(n=400, seed=0, copies=True):
    """n pairs of random words; with copies: queries in other dress, near-copies, pairs stored both ways, shared answers."""
    draw = np.random.default_rng(seed)

    def text(k):
        return " ".join(draw.choice(WORDS, k)) + f" {draw.integers(10**6)}"

    pairs = [(text(4), text(12)) for _ in range(n)]
    if copies:
        pairs += [(q, text(12)) for q, _ in pairs[:60]]  # further answers of a query
        pairs += [(q.upper() + "!", text(12)) for q, _ in pairs[:60]]
        pairs += [(q + "s", text(12)) for q, _ in pairs[:60]]
        pairs += [(d, q) for q, d in pairs[:60]]
        pairs += [(text(4), d) for _, d in pairs[:60]]
    label = ["frequent" if i % 4 else "rare" for i in range(len(pairs))]
    return Rows([q for q, _ in pairs], [d for _, d in pairs], label=label)


def test_nothing_held_out_is_trained_on_in_any_dress():
    rows = made()
    division = divide(rows, COUNTS, SAME)
    held = {split: {rows.anchor[i] for i in of_split} for split, of_split in division.held.items()}
    assert {split: len(queries) for split, queries in held.items()} == COUNTS and not held["dev"] & held["test"]
    train = {text for i in division.train for text in (rows.anchor[i], rows.positive[i])}
    for query in held["test"] | held["dev"]:
        assert max(alike(query, text) for text in train) < 0.8
    for query in held["dev"]:  # what chooses has not seen what reports
        assert max(alike(query, other) for other in held["test"]) < 0.8


def test_every_row_is_somewhere_and_a_query_moves_with_all_its_rows():
    rows = made()
    division = divide(rows, COUNTS, SAME)
    parts = [*division.held.values(), division.train]
    placed = Counter(i for part in parts for i in part)
    assert set(placed.values()) == {1} and len(placed) + sum(division.dropped.values()) == len(rows)
    assert min(division.dropped.values()) > 5
    for split, of_split in division.held.items():
        queries = {rows.anchor[i] for i in of_split}
        assert [i for i, anchor in enumerate(rows.anchor) if anchor in queries] == of_split, split


def test_pairs_stored_both_ways_leave_nothing_of_test_in_dev():
    pairs = [(f"{word} {i * 7919}", f"{word} has {i * 104729} answers") for i, word in enumerate(WORDS * 5)]
    both = pairs + [(d, q) for q, d in pairs]
    rows = Rows([q for q, _ in both], [d for _, d in both])
    for seed in range(5):
        division = divide(rows, COUNTS, {"equal": Exact()}, seed=seed)
        asked = {rows.anchor[i] for i in division.held["test"]}
        assert not any(rows.positive[i] in asked for i in division.held["dev"])
        assert sum(map(len, division.held.values())) + len(division.train) + division.dropped["equal"] == len(rows)


def test_the_answer_of_a_held_out_query_may_answer_another():
    rows = Rows([f"query of its own {i} {i * 77777}" for i in range(20)], ["one answer"] * 20)
    division = divide(rows, {"test": 5}, {"equal": Exact()})
    assert len(division.train) == 15 and division.dropped == {"equal": 0}


def test_a_seed_gives_one_division_and_another_another():
    rows = made()
    assert divide(rows, COUNTS, SAME, seed=3) == divide(rows, COUNTS, SAME, seed=3)
    assert divide(rows, COUNTS, SAME, seed=3).held != divide(rows, COUNTS, SAME, seed=4).held


def test_each_stratum_gives_its_share():
    rows = made(copies=False)
    division = divide(rows, {"test": 41, "dev": 20}, SAME, "label")
    counts = Counter(rows.label[i] for i in division.held["test"])
    assert counts == {"frequent": 31, "rare": 10}  # 30.75 and 10.25
    taken = {name: of_stratum["test"] for name, of_stratum in division.strata.items()}
    assert taken == counts
    by_length = divide(rows, {"test": 40}, SAME)
    for of_stratum in by_length.strata.values():
        assert of_stratum["test"] == pytest.approx(of_stratum["queries"] / 10, abs=1)
    assert len(by_length.strata) >= 4


def test_lengths_that_are_all_equal_are_one_stratum():
    assert len(set(strata(Rows(["aa", "bb", "cc"], ["x"] * 3), None).values())) == 1


def test_a_class_of_one_is_no_fault():
    rows = Rows([f"q {i} {i * 7919}" for i in range(50)], ["d"] * 50, label=[str(i) for i in range(49)] + ["0"])
    assert len(divide(rows, {"test": 7, "dev": 3}, {"equal": Exact()}, "label").train) == 40


@pytest.mark.parametrize(
    ("rows", "counts", "stratify", "message"),
    [
        (made(10, copies=False), {"test": 10}, None, "test asks for 10 queries and training needs some, and of 10"),
        (made(30, copies=False), {"test": 20, "dev": 10}, None, "dev asks for 10 .* of 30 different ones 10 are left"),
        (Rows(["same"] * 50, ["d"] * 50), {"test": 5}, None, "of 1 different ones"),
        (Rows([f"the one and only question {i}" for i in range(50)], ["d"] * 50), {"test": 5}, None, "no row is left"),
        (
            Rows([f"the one and only question {i}" for i in range(50)], ["d"] * 50),
            {"test": 5, "dev": 5},
            None,
            "0 are left; 45 are the same as one drawn",
        ),
        (made(30), {"test": 5}, "language", "stratify=language: the data has label"),
        (Rows(["a"], ["b"]), {"test": 5}, "colour", "no column that fits"),
        (Rows(["a", "b"]), {"test": 1}, None, "needs pairs"),
        (Rows(["a", "b"], ["c", "d"], score=[0.0, 1.0]), {"test": 1}, None, "without scores"),
    ],
    ids=["few", "few for dev", "one", "one cluster", "one cluster, dev", "column", "no column", "texts", "scores"],
)
def test_what_cannot_be_divided(rows, counts, stratify, message):
    with pytest.raises(UsageError, match=message):
        divide(rows, counts, SAME, stratify)


def written(folder, rows, name="pairs.jsonl"):
    file = folder / name
    lines = [{"anchor": a, "positive": p} for a, p in zip(rows.anchor, rows.positive, strict=True)]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return file


def test_the_folder_is_read_as_data_and_as_queries(tmp_path):
    made_up = made()
    rows = Rows(
        made_up.anchor, made_up.positive, [[f"n{i}", "ñ 大熊猫 🐼\u2028"] for i in range(len(made_up))], made_up.label
    )
    division = divide(rows, COUNTS, SAME)
    report = write(division, tmp_path / "mine", {"seed": 1})
    columns = PAIR | {"negative": "negative", "label": "label"}
    train = Table(str(tmp_path / "mine" / "train.jsonl"), columns, held_out=0).splits.train
    assert train.anchor == [rows.anchor[i] for i in division.train]
    assert train.label == [rows.label[i] for i in division.train] and train.negative[0][1] == "ñ 大熊猫 🐼"
    for split, held in division.held.items():
        read = beir.read(str(tmp_path / "mine"), split)
        found = {(read.queries[q], read.corpus[d]) for q, grades in read.qrels.items() for d in grades}
        assert found == {(rows.anchor[i], rows.positive[i]) for i in held} and read.name == "mine"
    assert set(rows.positive) <= set(read.corpus.values()) and report["documents"] == len(read.corpus)
    assert report == json.loads((tmp_path / "mine" / "split.json").read_text())
    assert report["train"]["rows"] == len(division.train) and report["dropped"] == division.dropped
    answers = {rows.positive[i] for held in division.held.values() for i in held}
    assert report["train_rows_with_an_answer"] == sum(text in answers for text in train.positive) > 0
    for name, digest in report["files"].items():
        assert hashlib.sha256((tmp_path / "mine" / name).read_bytes()).hexdigest() == digest
    assert set(report["files"]) == {"corpus.jsonl", "queries.jsonl", "qrels/dev.tsv", "qrels/test.tsv", "train.jsonl"}


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        write(divide(made(), COUNTS, SAME), tmp_path / "mine", {})
    assert not [*(tmp_path / "mine").iterdir()]


def test_the_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr("unitsphere.data.split._lines", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(divide(made(), COUNTS, SAME), tmp_path / "mine", {})
    assert not [*tmp_path.iterdir()]


def test_the_verb_takes_all_rows_of_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["unitsphere"])
    file, out = written(tmp_path, made(300, copies=False)), tmp_path / "mine"
    verb.main(["data=pairs", f"data.path={file}", f"out={out}", "queries=30", "dev=10", "near=null"])
    printed = capsys.readouterr().out
    assert "30 test queries, 10 dev queries, 300 documents, 260 rows for training" in printed and str(out) in printed
    assert sum(1 for _ in (out / "train.jsonl").open()) == 260


def test_all_rows_of_a_mixture_and_all_documents_of_a_corpus_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["unitsphere"])
    file, out = written(tmp_path, made(100, copies=False)), tmp_path / "mixed"
    sources = ["+data@data.sources.one=pairs", f"data.sources.one.path={file}"]
    verb.main(["data=mixture", *sources, f"out={out}", "queries=10", "dev=5", "near=null"])
    assert sum(1 for _ in (out / "train.jsonl").open()) == 85
    beir, again = tmp_path / "beir", tmp_path / "again"
    (beir / "qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        texts = ({"_id": f"{i}", "text": f"{name} number {i} {i * 7919}"} for i in range(60))
        (beir / f"{name}.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    grades = "".join(f"{i}\t{i}\t1\n" for i in range(30))  # of half of the documents
    (beir / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + grades)
    verb.main(["data=beir", f"data.path={beir}", f"out={again}", "queries=5", "dev=0", "near=null"])
    assert sum(1 for _ in (again / "corpus.jsonl").open()) == 60


def test_instructions_stay_as_they_were_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["unitsphere"])
    file, out = tmp_path / "records.jsonl", tmp_path / "mine"
    row = {"query_instruction": "Find it", "positive_instruction": "Show it"}
    lines = [row | {"query": f"question {i} {i * 7919}", "positive": f"answer {i}"} for i in range(60)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    verb.main(["data=instructions", f"data.path={file}", f"out={out}", "queries=6", "dev=0", "near=null"])
    (first, *_) = map(json.loads, (out / "train.jsonl").open())
    assert (first["anchor_instruction"], first["positive_instruction"]) == ("Find it", "Show it")
    assert json.loads((out / "split.json").read_text())["without_instruction"] == ["anchor", "positive"]
    assert "the queries drawn are scored without" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out={out}", "data.path={file}", "queries=0"], "queries=0"),
        (["out={file}", "data.path={file}"], "is there already"),
        (["data.path={file}"], "out must be given"),
        (["out={out}", "data.path={file}", "queries=3", "dev=0", "near=2"], "jaccard=2"),
        (["out={out}", "data.path={file}", "stratify=colour"], "stratify=colour"),
    ],
)
def test_the_verb_says_what_is_wrong(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("sys.argv", ["unitsphere"])
    names = {"file": written(tmp_path, made(30, copies=False)), "out": tmp_path / "mine"}
    with pytest.raises(SystemExit) as end:
        verb.main([a.format(**names) for a in arguments])
    assert end.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_a_run_trains_on_the_folder_and_is_scored_on_it(tmp_path):
    out = tmp_path / "mine"
    write(divide(made(60, copies=False), {"test": 8, "dev": 4}, SAME), out, {})
    run = start(
        composed(
            "encoder=tiny", "loss=infonce", "data=pairs", f"data.path={out}/train.jsonl", "data.held_out=0", "eval=retrieval",
            "data.batch_size=8", "trainer.max_steps=1", "trainer.accelerator=cpu", "trainer.threads=1",
            f"eval.retrieval.path={out}", f"outputs={tmp_path}/out",
        ), [], {},
    )  # fmt: skip
    metrics = train(run.config, run)
    assert run.info["data"]["train"]["rows"] == 48 and {"dev/mine/mrr@10", "test/mine/mrr@10"} <= set(metrics)
    asked = [f"model={run.folder}", "eval=retrieval", f"eval.retrieval.path={out}", "threads=1"]
    again = evaluate(composed(*asked, root="eval"), tmp_path / "again")
    assert again.metrics["test/mine/mrr@10"] == pytest.approx(metrics["test/mine/mrr@10"], abs=1e-6)
