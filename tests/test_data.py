"""Reading the user's files, saying what is wrong with them, splitting, and batches that can be resumed."""

import csv
import gzip
import json

import datasets
import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from pyarrow import parquet

from unitsphere.data.batches import Batches
from unitsphere.data.beir import Beir
from unitsphere.data.docstrings import Docstrings
from unitsphere.data.harvest import docstrings
from unitsphere.data.mixture import Mixture
from unitsphere.data.rows import COLUMNS, Rows
from unitsphere.data.samplers import ClassBalanced, Shuffled, TaskHomogeneous
from unitsphere.data.table import Table
from unitsphere.data.tokens import tokenize
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.evaluation.retrieval import vectors

PAIR = {"anchor": "anchor", "positive": "positive"}
ROWS = [{"anchor": f"question {i}", "positive": f"answer {i}"} for i in range(40)]


def written(folder, kind, rows=ROWS):
    file = folder / f"rows.{kind}"
    match kind:
        case "jsonl":
            file.write_text("".join(json.dumps(r) + "\n" for r in rows))
        case "jsonl.gz":
            with gzip.open(file, "wt") as out:
                out.writelines(json.dumps(r) + "\n" for r in rows)
        case "parquet":
            pd.DataFrame(rows).to_parquet(file)
        case "folder":
            datasets.Dataset.from_list(rows).save_to_disk(file)
        case "csv" | "tsv":
            with file.open("w", newline="") as out:
                writer = csv.DictWriter(out, rows[0].keys(), delimiter="," if kind == "csv" else "\t")
                writer.writeheader()
                writer.writerows(rows)
    return str(file)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "folder", "csv", "tsv"])
def test_every_format_gives_the_same_rows(tmp_path, kind):
    splits = Table(written(tmp_path, kind), PAIR).splits
    reference = Table(written(tmp_path, "jsonl"), PAIR).splits
    assert splits == reference
    assert len(splits.train) == 32 and len(splits.dev.queries) == len(splits.test.queries) == 4
    held = {*splits.dev.queries.values(), *splits.test.queries.values()}
    assert not held & set(splits.train.anchor)


def test_texts_have_no_queries(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one\n\ntwo\n大熊猫 🐼\n", encoding="utf-8")
    splits = Table(str(file), {"anchor": "text"}).splits
    assert splits.train.anchor == ["one", "two", "大熊猫 🐼"] and splits.dev is None


def test_several_negatives_in_a_list_or_in_columns(tmp_path):
    rows = [{"anchor": "a", "positive": "p", "negative": ["x", "y"], "n2": "z"}] * 3
    columns = PAIR | {"negative": "negative"}
    assert Table(written(tmp_path, "jsonl", rows), columns).load().train.negative[0] == ["x", "y"]
    both = PAIR | {"negative": ["negative", "n2"]}
    assert Table(written(tmp_path, "jsonl", rows), both).load().train.negative[0] == ["x", "y", "z"]


def test_columns_by_number_where_there_is_no_header(tmp_path):
    file = tmp_path / "parallel.tsv"
    file.write_text('he said "hi\tsagte er\n' * 3)
    rows = Table(str(file), {"anchor": 0, "positive": 1}).load().train
    assert rows.anchor[0] == 'he said "hi' and len(rows) == 3


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("jsonl", '{"anchor": "a", "positive": "b"}\n{"anchor": "a"}\n', "row 2: no column 'positive'; found: anchor"),
        ("jsonl", '{"anchor": "a", "positive": "b"}\n{"anchor": \n', "row 2: not valid JSON"),
        ("jsonl", '{"anchor": "a", "positive": " "}\n', "row 1: column 'positive' is empty"),
        ("jsonl", '{"anchor": 7, "positive": "b"}\n', "row 1: column 'anchor' should hold a text, found 7"),
        ("jsonl", "[1]\n", "row 1: a JSON object expected"),
        (
            "jsonl",
            '{"anchor": "a", "positive": "\\ud83d b"}\n',
            "row 1: half of a surrogate pair, which is no character",
        ),
        ("csv", "anchor,positive\na,b\na\n", "row 3: 2 columns expected, found 1"),
        ("csv", f"anchor,positive\na,{'b' * 200_000}\na\n", "row 3: 2 columns expected, found 1"),
        (
            "csv",
            "question,positive\na,b\n",
            "row 2: no column 'anchor'; found: question, positive. Name it with data.columns.anchor=",
        ),
        ("jsonl", "", "no usable row; it is empty"),
        ("docx", "x", "a file ending in .csv"),
    ],
)
def test_a_bad_row_is_named(tmp_path, kind, content, message):
    file = tmp_path / f"bad.{kind}"
    file.write_text(content)
    with pytest.raises(UsageError) as error:
        Table(str(file), PAIR).load()
    assert message in str(error.value) and str(file) in str(error.value)


def test_not_utf8_and_missing_files(tmp_path):
    good = '{"anchor": "é", "positive": "e"}\n'
    for name, opened in (("latin.jsonl", open), ("latin.jsonl.gz", gzip.open)):
        with opened(tmp_path / name, "wb") as file:
            file.write(good.encode() * 20_000 + good.encode("latin-1"))
        with pytest.raises(
            UsageError, match=rf"{name}, line 20001, byte 13: not UTF-8: b'.*anchor.*xe9.*Save it as UTF-8"
        ):
            Table(str(tmp_path / name), PAIR).load()
    latin = pyarrow.array(["é".encode("latin-1")]).cast(pyarrow.string(), safe=False)
    parquet.write_table(pyarrow.table({"anchor": latin, "positive": latin}), tmp_path / "latin.parquet")
    with pytest.raises(UsageError, match=r"latin.parquet: not a readable parquet file \(.*utf-8"):
        Table(str(tmp_path / "latin.parquet"), PAIR).load()
    damaged = gzip.compress(good.encode() * 100)
    (tmp_path / "damaged.jsonl.gz").write_bytes(damaged[:15] + b"\xff\xff\xff" + damaged[18:])
    with pytest.raises(UsageError, match=r"damaged.jsonl.gz: not readable as jsonl"):
        Table(str(tmp_path / "damaged.jsonl.gz"), PAIR).load()
    with pytest.raises(UsageError, match="no such file here"):
        Table(str(tmp_path / "nothing.jsonl"), PAIR).load()
    with pytest.raises(UsageError, match=r"data.path is not set"):
        Table(None, PAIR)


@pytest.mark.parametrize("score", ["nan", "inf", "-Infinity", "high", ""])
def test_a_score_is_a_finite_number(tmp_path, score):
    (tmp_path / "rows.csv").write_text(f"anchor,positive,score\na,b,{score}\n")
    with pytest.raises(UsageError, match="row 2: column 'score' should hold a number, found"):
        Table(str(tmp_path / "rows.csv"), PAIR | {"score": "score"}).load()


def test_a_text_may_be_a_query_and_a_document_with_two_instructions():
    given = {"anchor_instruction": ["Q: "] * 2, "positive_instruction": ["D: "] * 2}
    both = Rows(anchor=["a", "b"], positive=["b", "a"], **given).retrieval("both")
    asked = []

    def embed(texts, role, max_length=None, prompt=None):
        asked.append((role, prompt, sorted(texts)))
        return np.eye(len(texts), 3)

    for role in ("query", "document"):
        vectors(embed, ["a", "b"], role, both)
    assert asked == [("query", "Q: ", ["a", "b"]), ("document", "D: ", ["a", "b"])]


def test_bad_rows_are_skipped_and_counted_on_demand(tmp_path):
    file = tmp_path / "mixed.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in ROWS) + '{"anchor": ""}\nnot json\n')
    splits = Table(str(file), PAIR, on_bad_row="skip").splits
    assert splits.skipped == 2 and splits.provenance()["skipped"] == 2


def test_unknown_column_names_are_refused():
    with pytest.raises(UsageError, match="keys are out of anchor, positive"):
        Table("x.jsonl", {"query": "q"})


def test_rows_with_one_anchor_are_one_query():
    found = Rows(["a", "a", "b"], ["x", "y", "x"]).retrieval("t")
    texts = {found.queries[q]: {found.corpus[d] for d in grades} for q, grades in found.qrels.items()}
    assert texts == {"a": {"x", "y"}, "b": {"x"}} and len(found.corpus) == 2


def beir(folder, qrels):
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{i}", "title": "T", "text": f"doc {i}"}) + "\n" for i in range(5))
    )
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{i}", "text": f"query {i}"}) + "\n" for i in range(60))
    )
    for split, rows in qrels.items():
        (folder / "qrels" / f"{split}.tsv").write_text(
            "query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t{s}\n" for q, d, s in rows)
        )
    return str(folder)


def test_beir_takes_dev_from_train_where_there_is_none(tmp_path):
    path = beir(
        tmp_path / "b", {"train": [(f"q{i}", "d1", 1) for i in range(60)], "test": [("q0", "d2", 1), ("q0", "d3", 0)]}
    )
    splits = Beir(path, {"anchor": "query", "positive": "document"}).splits
    assert splits.dev.queries and not set(splits.dev.queries.values()) & set(splits.train.anchor)
    assert len(splits.train) + len(splits.dev.queries) == 60
    assert splits.test.qrels == {"q0": {"d2": 1, "d3": 0}} and splits.test.corpus["d1"] == "T doc 1"


def test_beir_says_which_judgment_is_wrong(tmp_path):
    path = beir(tmp_path / "b", {"train": [("q1", "d9", 1)]})
    with pytest.raises(UsageError, match="document d9"):
        Beir(path, {"anchor": "query", "positive": "document"}).load()
    (tmp_path / "b" / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\thigh\n")
    with pytest.raises(UsageError, match=r"train.tsv, row 2"):
        Beir(path, {"anchor": "query", "positive": "document"}).load()
    with pytest.raises(UsageError, match="UNITSPHERE_DATA is not set"):
        Beir("nowhere", {"anchor": "query", "positive": "document"})


def test_docstrings_are_read_without_importing(tmp_path):
    file = tmp_path / "m.py"
    rest = "It does so by raising a SystemError, in case anybody should import this module."
    file.write_text(f'def f():\n    """Explain what the function does.\n\n    {rest}\n    """\nraise SystemError\n')
    assert docstrings(str(file)) == [("Explain what the function does.", rest)]
    file.write_text("def broken(:\n")
    assert docstrings(str(file)) == []


@pytest.mark.slow
def test_docstrings_of_this_machine_are_split_by_package():
    splits = Docstrings({"anchor": "summary", "positive": "document", "label": "module"}).splits
    assert len(splits.train) > 15_000 and len(splits.test.queries) > 1_000 and len(splits.dev.queries) == 500
    assert {"scipy.stats", "json"} <= set(splits.train.label)
    assert not any(label.startswith(("sklearn", "networkx")) for label in splits.train.label)
    assert (
        Docstrings({"anchor": "summary"}).splits.train.fingerprint
        == Docstrings({"anchor": "summary"}).splits.train.fingerprint
    )


def batches(tmp_path, rows, **kwargs):
    options = {
        "columns": COLUMNS, "sampler": Shuffled(), "batch_size": 4, "max_length": 16, "seed": 1, "prompts": {},
    } | kwargs  # fmt: skip
    return Batches(rows, encoder=tiny(), cache=tmp_path, **options)


def test_batches_cover_an_epoch_in_an_order_of_the_seed(tmp_path):
    rows = Rows([f"text {i}" for i in range(10)])
    first = [b.row_ids.tolist() for b in batches(tmp_path, rows)]
    assert first == [b.row_ids.tolist() for b in batches(tmp_path, rows)]
    assert first != [b.row_ids.tolist() for b in batches(tmp_path, rows, seed=2)]
    flat = [i for batch in first for i in batch]
    assert len(flat) == len(set(flat)) == 8  # two rows fill no batch of four
    endless = batches(tmp_path, rows)
    assert [b.row_ids.tolist() for b in endless] != [b.row_ids.tolist() for b in endless]


def test_an_epoch_that_is_counted_to_its_end_is_over(tmp_path):
    """Lightning takes `len` batches and never asks for one more."""
    loader = batches(tmp_path, Rows([f"text {i}" for i in range(10)]))
    epochs = [[b.row_ids.tolist() for b, _ in zip(loader, range(len(loader)), strict=False)] for _ in range(3)]
    assert all(len(epoch) == 2 for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_batches_go_on_where_they_were_cut(tmp_path, cut):
    rows = Rows([f"text {i}" for i in range(10)])
    whole = batches(tmp_path, rows)
    expected = [b.row_ids.tolist() for _ in range(2) for b in whole]
    killed, resumed = batches(tmp_path, rows), batches(tmp_path, rows)
    seen, epoch = [], iter(killed)
    for _ in range(cut):
        try:
            batch = next(epoch)
        except StopIteration:
            epoch = iter(killed)
            batch = next(epoch)
        seen.append(batch.row_ids.tolist())
    resumed.load_state_dict(killed.state_dict())
    rest = [b.row_ids.tolist() for _ in range(2) for b in resumed]
    assert (seen + rest)[:4] == expected


def test_a_batch_holds_what_its_rows_hold(tmp_path):
    rows = Rows(
        ["a", "b", "a", "c"],
        ["p", "q", "r", "a"],
        [["n", "m"], [], ["p"], ["o"]],
        ["x", "y", "x", "x"],
        [1.0, 2.0, 3.0, 4.0],
    )
    loader = batches(tmp_path, rows, prompts={"query": "ask: "})
    batch = next(iter(loader))
    order = batch.row_ids.tolist()
    encoder = tiny()
    for column, prompt in (("anchor", "ask: "), ("positive", "")):
        texts = [prompt + getattr(rows, column)[i] for i in order]
        assert [t.ids.tolist() for t in batch.tokens[column]] == [t.tolist() for t in encoder.tokenize(texts, 16)]
        assert {t.prompt for t in batch.tokens[column]} == {encoder.prompt_length(prompt)}
        assert list(batch.texts[column]) == [getattr(rows, column)[i] for i in order]
    owners = [at for at, i in enumerate(order) for _ in rows.negative[i]]
    assert batch.negative_rows.tolist() == owners and len(batch.tokens["negative"]) == 4
    ids = dict(zip(order, batch.text_ids["anchor"].tolist(), strict=True))
    assert ids[0] == ids[2] != ids[1]
    assert batch.text_ids["positive"].tolist()[order.index(3)] == ids[0]
    assert torch.equal(batch.scores, torch.tensor([rows.score[i] for i in order]))
    assert (batch.labels[order.index(0)] == batch.labels[order.index(2)]) and batch.labels.unique().numel() == 2


def test_ranks_share_a_batch(tmp_path):
    rows = Rows([f"text {i}" for i in range(8)])
    whole, parts = batches(tmp_path, rows), [batches(tmp_path, rows) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.rank, part.world = rank, 2
    for full, *shares in zip(whole, *parts, strict=True):
        assert sorted(full.row_ids.tolist()) == sorted(i for share in shares for i in share.row_ids.tolist())


def test_too_few_rows_for_a_batch(tmp_path):
    with pytest.raises(UsageError, match=r"data.batch_size=3 would"):
        batches(tmp_path, Rows(["a", "b", "c"]))


def test_the_token_cache_knows_the_encoders_own_limit(tmp_path):
    texts = ["a long text of many letters"]
    short, long = tiny(max_length=8), tiny(max_length=64)
    assert [len(tokenize(texts, encoder, 32, tmp_path)[0]) for encoder in (short, long)] == [
        8,
        len(long.tokenize(texts, 32)[0]),
    ]


def test_a_split_of_a_saved_data_set(tmp_path):
    rows = {"anchor": ["a"], "positive": ["b"]}
    both = datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_dict(rows),
            "other": datasets.Dataset.from_dict({"anchor": ["x"], "positive": ["y"]}),
        }
    )
    both.save_to_disk(tmp_path / "both")
    assert Table(f"{tmp_path}/both:other", PAIR).load().train.anchor == ["x"]


def test_columns_that_no_loss_reads_are_not_tokenised(tmp_path):
    rows = Rows([f"a{i}" for i in range(8)], [f"p{i}" for i in range(8)], [[f"n{i}"] for i in range(8)])
    batch = next(iter(batches(tmp_path, rows, columns={"anchor"})))
    assert set(batch.tokens) == set(batch.text_ids) == {"anchor"} and not len(batch.negative_rows)


def test_an_instruction_stands_before_its_text(tmp_path):
    rows = Rows(
        anchor=["a", "b"],
        positive=["p", "q"],
        negative=[["n"], ["m", "o"]],
        anchor_instruction=["find: ", "name: "],
        positive_instruction=["is: ", ""],
    )
    batch, encoder = next(iter(batches(tmp_path, rows, batch_size=2, prompts={"query": "unused "}))), tiny()
    for at, row in enumerate(batch.row_ids.tolist()):
        before, after = rows.anchor_instruction[row], rows.positive_instruction[row]
        text = batch.tokens["anchor"][at]
        assert text.ids.tolist() == encoder.tokenize([before + rows.anchor[row]])[0].tolist()
        assert text.prompt == len(encoder.tokenize([before])[0]) - 1
        own = [
            t for t, owner in zip(batch.tokens["negative"], batch.negative_rows.tolist(), strict=True) if owner == at
        ]
        wanted = encoder.tokenize([after + n for n in rows.negative[row]])
        assert [t.ids.tolist() for t in own] == [w.tolist() for w in wanted]
        assert batch.instructions["anchor"][at] == before
    assert batch.instructions["negative"] == [
        rows.positive_instruction[batch.row_ids[at]] for at in batch.negative_rows
    ]


def test_instruction_records_and_scaled_scores_are_read(tmp_path):
    file = tmp_path / "records.jsonl"
    file.write_text(json.dumps({"i": "Find it.", "q": "a", "p": "b", "s": 4}) + "\n")
    columns = {"anchor": "q", "positive": "p", "anchor_instruction": "i", "score": "s"}
    data = Table(str(file), columns, max_score=5.0, instruction_format="Instruct: {}\n")
    assert data.splits.train.anchor_instruction == ["Instruct: Find it.\n"]
    assert data.splits.train.score == [0.8] and data.splits.dev is None


def labelled(n=40, classes=5):
    return Rows([f"text {i}" for i in range(n)], label=[str(i % classes) for i in range(n)])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_class_balanced_batches():
    rows = labelled()
    order = ClassBalanced(per_class=4)(rows, 12, generator())
    for batch in order.tolist():
        counts = pd.Series([rows.label[i] for i in batch]).value_counts()
        assert len(counts) == 3 and set(counts) == {4}
    assert len(set(order.ravel().tolist())) == order.size and len(order) >= 2
    assert (order == ClassBalanced(per_class=4)(rows, 12, generator())).all()
    assert (order != ClassBalanced(per_class=4)(rows, 12, generator(1))).any()


@pytest.mark.parametrize(
    ("sampler", "rows", "text"),
    [
        (ClassBalanced(4), Rows(["a"] * 8), "label column"),
        (ClassBalanced(3), labelled(), "no multiple"),
        (ClassBalanced(4), labelled(classes=20), "needs 2"),
        (TaskHomogeneous(), Rows(["a"] * 8), "data=mixture"),
        (TaskHomogeneous(), Rows(["a"] * 12, task=["x"] * 9 + ["y"] * 3), "'y' does not fill"),
    ],
)
def test_a_sampler_says_what_it_lacks(sampler, rows, text):
    with pytest.raises(UsageError, match=text):
        sampler(rows, 8, generator())


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.8), (1e6, 0.5)])
def test_batches_of_one_task_in_the_shares_of_the_temperature(temperature, share):
    rows = Rows(["a"] * 5000, task=["big"] * 4000 + ["small"] * 1000)
    order = TaskHomogeneous(temperature)(rows, 4, generator())
    tasks = [{rows.task[i] for i in batch} for batch in order.tolist()]
    assert all(len(task) == 1 for task in tasks) and len(tasks) == 1250
    assert sum(task == {"big"} for task in tasks) / len(tasks) == pytest.approx(share, abs=0.05)


def test_a_mixture_keeps_tasks_instructions_and_the_first_ones_queries(tmp_path):
    sources = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        rows = [{"anchor": f"{name} {i}", "positive": f"{name} p{i}"} for i in range(40)]
        sources[name] = Table(str(written(tmp_path / name, "jsonl", rows)), PAIR)
    data = Mixture(sources, PAIR, instructions={"two": {"anchor": "query: "}})
    rows = data.splits.train
    assert data.splits.dev == sources["one"].splits.dev
    assert Mixture(sources, PAIR, eval_max_length=7).splits.dev.max_length == 7
    for i in range(len(rows)):
        assert rows.anchor[i].startswith(rows.task[i])
        assert rows.anchor_instruction[i] == ("query: " if rows.task[i] == "two" else None)
        assert rows.positive_instruction[i] is None
    first = Mixture(sources, PAIR, instructions={"one": {"anchor": "query: "}}).splits.dev
    assert first.instructions == {("query", text): "query: " for text in first.queries.values()}
    with pytest.raises(UsageError, match="no side 'query'"):
        Mixture(sources, PAIR, instructions={"two": {"query": "query: "}})
    with pytest.raises(UsageError, match="no source 'three'"):
        Mixture(sources, PAIR, instructions={"three": {}})


def test_rows_without_an_instruction_take_the_models_prompt(tmp_path):
    rows = Rows(["a", "b"], ["p", "q"], anchor_instruction=["find: ", None])
    batch, encoder = next(iter(batches(tmp_path, rows, batch_size=2, prompts={"query": "ask: "}))), tiny()
    got = {row: text.ids.tolist() for row, text in zip(batch.row_ids.tolist(), batch.tokens["anchor"], strict=True)}
    assert got == {i: encoder.tokenize([t])[0].tolist() for i, t in enumerate(["find: a", "ask: b"])}


def test_held_out_queries_keep_their_instructions(tmp_path):
    file = tmp_path / "records.jsonl"
    file.write_text("".join(json.dumps({"i": f"Find {n}.", "q": f"q{n}", "p": f"p{n}"}) + "\n" for n in range(40)))
    dev = Table(str(file), {"anchor": "q", "positive": "p", "anchor_instruction": "i"}).splits.dev
    assert dev.instructions == {("query", t): f"Find {t[1:]}. " for t in dev.queries.values()}


def test_scored_pairs_have_the_dev_and_test_files_they_are_given(tmp_path):
    file = written(tmp_path, "jsonl", [row | {"score": 1} for row in ROWS])
    data = Table(str(file), PAIR | {"score": "score"}, dev_path=str(file))
    assert len(data.splits.train) == 40 and len(data.splits.dev.queries) == 40 and data.splits.test is None


def test_an_empty_label_is_a_bad_row(tmp_path):
    file = written(tmp_path, "jsonl", [row | {"label": ""} for row in ROWS])
    with pytest.raises(UsageError, match="row 1: column 'label' is empty"):
        _ = Table(str(file), {"anchor": "anchor", "label": "label"}).splits
