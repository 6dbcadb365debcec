"""Rows that stay on disk are the rows that memory would hold."""

import hashlib
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from conftest import composed
from unitsphere import paths
from unitsphere.cli.train import start
from unitsphere.data.batches import Batches
from unitsphere.data.mixture import Mixture
from unitsphere.data.preparation.duplicates import Duplicates
from unitsphere.data.preparation.sample import Sample
from unitsphere.data.preparation.step import prepare
from unitsphere.data.preparation.whitespace import Whitespace
from unitsphere.data.rows import COLUMNS
from unitsphere.data.samplers import Shuffled
from unitsphere.data.table import Table
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.formats import beir, on_disk
from unitsphere.similar import Exact
from unitsphere.training.run import train


def test_a_corpus_on_disk_is_the_corpus(tmp_path):
    records = [
        {"_id": "a", "title": "T", "text": "one\nline 大熊猫 🙂"},
        {"_id": "b", "title": None, "text": ""},
        {"_id": "c", "text": " two "},
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    ids, texts = on_disk.documents(str(tmp_path / "corpus.jsonl"))
    assert dict(zip(ids, texts, strict=True)) == beir.read_texts(tmp_path, "corpus")
    assert [texts[i] for i in range(3)] == list(texts) and texts[-1] == "two"
    with pytest.raises(IndexError):
        texts[3]
    some = texts.take([2, 0])
    assert list(some) == [texts[2], texts[0]] == [some[0], some[1]] and list(some.take([1])) == [texts[0]]


def test_a_text_file_has_its_lines_and_their_numbers(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    ids, texts = on_disk.documents(str(tmp_path / "a.txt"))
    assert list(ids) == ["1", "3"] and list(texts) == ["one", "two"]


def test_a_changed_file_is_read_again_and_a_broken_one_leaves_nothing(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n')
    assert list(on_disk.documents(str(file))[1]) == ["one"]
    file.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert list(on_disk.documents(str(file))[1]) == ["one", "two"]
    before = set((paths.cache() / "rows").iterdir())
    file.write_text('{"text": "one"}\n{"body": "two"}\n')
    with pytest.raises(UsageError, match=r"a.jsonl, row 2: an object with text expected"):
        on_disk.documents(str(file))
    file.write_text("")
    with pytest.raises(UsageError, match="is empty"):
        on_disk.documents(str(file))
    with pytest.raises(UsageError, match="no such file or folder here"):
        on_disk.documents("owner/name")
    assert set((paths.cache() / "rows").iterdir()) == before


def test_two_processes_may_write_the_same(tmp_path):
    folder = tmp_path / "rows"
    with on_disk.making(folder) as slow:
        on_disk.write(slow, [["a"]])
        fast = tmp_path / "fast"
        fast.mkdir()
        on_disk.write(fast, [["a"]])
        fast.rename(folder)
    assert list(on_disk.Lines(folder)) == [["a"]] and {f.name for f in tmp_path.iterdir()} == {"rows"}
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for number in (os.getpid(), ended.pid):  # left by processes that were killed
        (tmp_path / f"more.{socket.gethostname()}.{number}.writing").mkdir()
    others = [tmp_path / f"more.{place}.writing" for place in (f"{socket.gethostname()}.{os.getppid()}", "elsewhere.1")]
    for other in others:
        other.mkdir()
    with on_disk.making(tmp_path / "more") as work:
        on_disk.write(work, [["b"]])
    assert list(on_disk.Lines(tmp_path / "more")) == [["b"]]
    assert {*tmp_path.glob("*.writing")} == {*others}
    assert np.asarray(on_disk.Lines(folder).starts).tolist() == [0, 6]


PAIR = {"anchor": "anchor", "positive": "positive"}
FULL = PAIR | {"negative": "negative", "label": "label", "anchor_instruction": "instruction"}
ROWS = [
    {"anchor": f"question {i % 97}", "positive": f"answer {i} 猫", "label": f"class {i % 3}", "instruction": f"Find {i % 2}:"}
    | {"negative": [f"not {i}", f"answer {(i + 1) % 120}"][: i % 3]}
    for i in range(120)
]  # fmt: skip


def pairs_file(folder, rows=ROWS, bad=0):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"anchor": ""}\n' * bad)
    return str(file)


@pytest.mark.parametrize("columns", [PAIR, FULL, {"anchor": "anchor", "label": "label"}])
def test_a_table_on_disk_is_the_table(tmp_path, columns):
    file = pairs_file(tmp_path, bad=2)
    here, there = (Table(file, columns, on_bad_row="skip", on_disk=on_disk).splits for on_disk in (False, True))
    assert there.train.on_disk and not here.train.on_disk
    for column in COLUMNS:
        a, b = getattr(here.train, column), getattr(there.train, column)
        assert (a is None) == (b is None) and (a is None or list(a) == list(b))
    assert (here.dev, here.test, here.skipped) == (there.dev, there.test, 2)
    assert here.provenance() == there.provenance()
    if columns is PAIR:
        assert len(here.dev.queries) == 9 and len(set(here.train.anchor)) == 97 - 18


def test_the_held_out_are_those_of_the_smallest_hash(tmp_path):
    splits = Table(pairs_file(tmp_path), PAIR, on_disk=True).splits
    order = sorted({row["anchor"] for row in ROWS}, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    assert set(splits.dev.queries.values()) == set(order[:9]) and set(splits.test.queries.values()) == set(order[9:18])
    assert set(splits.train.anchor) == set(order[18:])


@pytest.mark.parametrize("prompts", [{}, {"query": "ask: ", "document": "passage: "}])
@pytest.mark.parametrize("columns", [PAIR, FULL])
def test_batches_from_disk_are_those_from_memory(tmp_path, columns, prompts):
    file, encoder = pairs_file(tmp_path), tiny()
    made = [
        Batches(
            Table(file, columns, on_disk=on_disk).splits.train, COLUMNS, Shuffled(), encoder, prompts, 8, 16, 1, tmp_path
        )
        for on_disk in (False, True)
    ]  # fmt: skip
    for a, b in zip(*made, strict=True):
        assert (
            a.texts == b.texts
            and a.tokens.keys() == b.tokens.keys() == {"anchor", "positive", *columns} & a.tokens.keys()
        )
        for column, texts in a.tokens.items():
            assert [(t.ids.tolist(), t.prompt) for t in texts] == [(t.ids.tolist(), t.prompt) for t in b.tokens[column]]
            assert torch.equal(a.text_ids[column], b.text_ids[column])
        for field in ("negative_rows", "row_ids", "labels", "scores"):
            x, y = getattr(a, field), getattr(b, field)
            assert (x is None and y is None) or torch.equal(x, y)
    assert not list((tmp_path / "tokens").glob("*.writing")) and len(list((tmp_path / "tokens").iterdir())) == 1


def test_texts_are_numbered_alike_in_every_batch(tmp_path):
    rows = Table(pairs_file(tmp_path), FULL, on_disk=True).splits.train
    number = {}
    for batch in Batches(rows, COLUMNS, Shuffled(), tiny(), {}, 8, 16, 1, tmp_path):
        for column, texts in batch.texts.items():
            for text, of_text in zip(texts, batch.text_ids[column].tolist(), strict=True):
                assert number.setdefault(text, of_text) == of_text
    assert len(set(number.values())) == len(number) > 100


def test_a_run_from_disk_is_the_run_from_memory(tmp_path):
    metrics = []
    for where in (False, True):
        config = composed(
            "encoder=tiny", "loss=infonce", "data=pairs", f"data.path={pairs_file(tmp_path)}", "data.batch_size=8",
            "trainer.max_steps=4", f"data.on_disk={where}", f"outputs={tmp_path}/out", "optim.lr=0.01",
        )  # fmt: skip
        run = start(config, [], {})
        metrics.append(train(run.config, run))
    assert metrics[0] == metrics[1]


def test_a_step_or_mixture_that_would_read_all_rows_into_memory_is_refused(tmp_path):
    table = Table(pairs_file(tmp_path), FULL, on_disk=True)
    for name, step in {"whitespace": Whitespace(), "exact_duplicates": Duplicates(Exact())}.items():
        with pytest.raises(UsageError, match=rf"preparation.{name} reads all rows into memory; data.on_disk=false"):
            prepare(table.splits.train, {name: step}, 1)
    sample, report = prepare(table.splits.train, {"sample": Sample(20)}, 1)
    assert sample.on_disk and report[0]["left"] == len(sample) > 10
    with pytest.raises(UsageError, match=r"memory; data.sources.far.on_disk=false says so"):
        Mixture({"far": table}, PAIR).load()


def test_what_cannot_stay_on_disk(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder here"):
        Table("owner/name", PAIR, on_disk=True).load()
    with pytest.raises(UsageError, match=r"rows.jsonl, row 121: column 'anchor' is empty"):
        Table(pairs_file(tmp_path, bad=1), PAIR, on_disk=True).load()
    with pytest.raises(UsageError, match="no usable row; it is empty"):
        Table(pairs_file(tmp_path, []), PAIR, on_disk=True).load()
    assert not list((paths.cache() / "rows").glob("*.writing"))
