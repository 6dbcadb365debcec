"""Rows that stay on disk are the rows that memory would hold."""

import json

import numpy as np
import pytest

from unitsphere import paths
from unitsphere.errors import UsageError
from unitsphere.formats import beir, on_disk


def test_a_corpus_on_disk_is_the_corpus(tmp_path):
    records = [
        {"_id": "a", "title": "T", "text": "one\nline 大熊猫 \ud800"},
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
    assert np.asarray(on_disk.Lines(folder).starts).tolist() == [0, 6]
