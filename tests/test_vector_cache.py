"""Vectors on disk: found again for the same model and texts, and for nothing else."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import ByT5Tokenizer

from conftest import composed
from making import model
from unitsphere import paths
from unitsphere.cli.evaluate import evaluate
from unitsphere.digest import tokenizer_identity
from unitsphere.encoders.fake_quant import add_fake_quant
from unitsphere.evaluation.stored import StoredEmbed, remembered
from unitsphere.training.module import EmbeddingModule
from unitsphere.types import Result

TEXTS = ["a tree", "sort an array", "", "合同"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("UNITSPHERE_CACHE", str(tmp_path / "cache"))


class Counting:
    """An embedding function that counts the texts it is asked for."""

    def __init__(self, embed):
        self.embed, self.asked = embed, 0

    def __call__(self, texts, role, max_length=None, prompt=None):
        self.asked += len(texts)
        return self.embed(texts, role, max_length, prompt)


def files():
    return sorted((paths.cache() / "vectors").glob("*"))


def test_the_second_time_nothing_is_embedded_and_every_digit_is_the_same():
    embed = Counting(model(dropout=0).embed)
    first = StoredEmbed(embed, "model", 1)(TEXTS, "query", 7, "ask: ")
    again = StoredEmbed(embed, "model", 1)(TEXTS, "query", 7, "ask: ")
    assert embed.asked == len(TEXTS) and np.array_equal(first, again) and again.dtype == np.float32
    for question in (
        (TEXTS[:2], "query", 7, "ask: "),
        (TEXTS, "document", 7, "ask: "),
        (TEXTS, "query", 8, "ask: "),
        (TEXTS, "query", 7, None),
        (["a tree sort an array"], "query", 7, "ask: "),
        (["a tree", "sort an array", "合同", ""], "query", 7, "ask: "),
    ):
        before = embed.asked
        StoredEmbed(embed, "model", 1)(*question)
        assert embed.asked == before + len(question[0]), question


def test_the_identity_is_that_of_everything_that_decides_a_vector():
    one = model(dropout=0)
    known = one.identity()
    one.encode(TEXTS, max_length=3)  # which leaves its settings in the tokenizer
    assert one.identity() == model(dropout=0).identity() == known
    with torch.no_grad():
        next(one.parameters()).view(-1)[0] += 1e-6
    assert one.identity() != known
    changed = {"normalize": model(dropout=0, normalize=False), "seed": model(dropout=0, seed=1)}
    changed |= {"prompts": model(dropout=0), "precision": model(dropout=0).to(torch.bfloat16)}
    changed["prompts"].prompts["query"] = "ask: "
    changed["tokenizer"] = model(dropout=0)
    changed["tokenizer"].encoder.tokenizer.add_tokens(["anothertoken"])
    changed["rounded"] = model(dropout=0)
    add_fake_quant(changed["rounded"].encoder.model)
    changed["length"] = model(dropout=0)
    changed["length"].encoder.max_length -= 1
    identities = {name: other.identity() for name, other in changed.items()}
    assert known not in identities.values() and len(set(identities.values())) == len(identities)


def test_zero_keeps_nothing():
    embedder = model(dropout=0)
    assert remembered(embedder, 0) == embedder.embed
    assert isinstance(remembered(embedder, 1), StoredEmbed)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
def test_a_damaged_file_is_computed_again(damage):
    embed = Counting(model(dropout=0).embed)
    first = StoredEmbed(embed, "model", 1)(TEXTS, "query")
    (file,) = files()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"truncated": file.read_bytes()[:-100], "flipped": bytes(content), "empty": b"", "other": b"no archive"}
    file.write_bytes(damaged[damage])
    assert np.array_equal(StoredEmbed(embed, "model", 1)(TEXTS, "query"), first) and embed.asked == 2 * len(TEXTS)
    assert np.array_equal(StoredEmbed(embed, "model", 1)(TEXTS, "query"), first) and embed.asked == 2 * len(TEXTS)


def test_the_folder_stays_within_its_limit():
    def embed(texts, role, max_length=None, prompt=None):
        return np.full((len(texts), 256), len(texts[0]), dtype=np.float32)

    stored = StoredEmbed(embed, "model", 5000 / 2**30)
    for age, name in enumerate(("a", "bb", "ccc", "dddd")):
        stored([name] * 1, "query")
        newest = max(files(), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, (age, age))
    stored(["bb"], "query")  # used again: younger than the others
    stored(["eeeee"], "query")
    assert sum(file.stat().st_size for file in files()) <= 5000
    left = {int(np.load(file)["vectors"][0, 0]) for file in files()}
    assert {2, 5} <= left and 1 not in left
    stored(["x"] * 100, "query")  # alone over the limit: it pushes nothing out
    assert {int(np.load(file)["vectors"][0, 0]) for file in files()} == left


@pytest.mark.slow
def test_several_processes_at_once():
    code = (
        "import numpy as np; from unitsphere.evaluation.stored import StoredEmbed\n"
        "embed = lambda texts, role, m=None, p=None: np.full((len(texts), 2000), float(texts[0]), dtype=np.float32)\n"
        "stored = StoredEmbed(embed, 'model', 60_000 / 2**30)\n"
        "for i in range(150): assert (stored([str(i % 10)], 'query') == i % 10).all()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[1] for process in processes] == ["", "", ""]
    assert all(process.returncode == 0 for process in processes)
    assert files() and not [file for file in files() if file.suffix == ".writing"]


def test_an_evaluation_reads_what_an_earlier_one_kept(pairs, tmp_path, monkeypatch):
    line = ["encoder=tiny", "pooling=mean", "data=pairs", f"data.path={pairs}", "threads=1", f"outputs={tmp_path}"]
    runs = [evaluate(composed(*line, "vector_cache=0", root="eval"), tmp_path / "none")]
    assert files() == []
    runs += [evaluate(composed(*line, root="eval"), tmp_path / "kept")]
    assert files()
    monkeypatch.setattr("unitsphere.embedder.Embedder.embed", None)  # which nothing may call now
    runs += [evaluate(composed(*line, root="eval"), tmp_path / "kept")]
    assert runs[0].metrics == runs[1].metrics == runs[2].metrics and runs[0].metrics


def test_the_first_look_at_dev_reads_what_was_kept_and_no_later_one_does(monkeypatch):
    embedder = model(dropout=0)
    counting = Counting(embedder.embed)
    monkeypatch.setattr(embedder, "embed", counting)
    dev = [lambda embed: Result({"m": float(embed(TEXTS, "query").sum())}, "m", {}, {})]
    module = EmbeddingModule(embedder, None, None, dev, untrained=lambda: remembered(embedder, 1))
    first = module.score_dev()
    assert counting.asked == len(TEXTS)
    assert module.score_dev() == first and counting.asked == len(TEXTS)
    monkeypatch.setattr(EmbeddingModule, "global_step", 1)
    module.score_dev()
    assert counting.asked == 2 * len(TEXTS)


def test_a_tokenizer_written_in_python_has_an_identity():
    def made(**options):
        one = model(dropout=0)
        one.encoder.tokenizer = ByT5Tokenizer(**options)
        return one

    assert not hasattr(ByT5Tokenizer(), "backend_tokenizer")
    assert made().identity() == made().identity() != model(dropout=0).identity()
    assert len({made().identity(), made(extra_ids=3).identity(), made(eos_token="<end>").identity()}) == 3
    for embedder in (made(), model(dropout=0)):
        assert tokenizer_identity(embedder.encoder.tokenizer) == tokenizer_identity(embedder.encoder.tokenizer)


def test_what_was_cut_is_counted_again_from_disk():
    """A cold and a warm round, of which the warm one has other texts too."""
    embedder = model(dropout=0)
    found = []
    for more in ([], ["x " * 300]):
        with embedder.counting() as read:
            embed = remembered(embedder, 1)
            embed(["a " * 200, "b", "b"], "document")
            embed(["abcdef", "abc"], "query", 5)
            if more:
                embed(more, "document")
        found.append(dict(read))
    assert found[0] == {("document", 128): (2, 1), ("query", 5): (2, 1)}
    assert found[1] == {("document", 128): (3, 2), ("query", 5): (2, 1)}


def test_a_disk_that_is_full_loses_nothing(monkeypatch):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    embed = Counting(model(dropout=0).embed)
    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="the vectors were not kept in .*: No space left"):
        found = StoredEmbed(embed, "model", 1)(TEXTS, "query")
    assert np.array_equal(found, embed(TEXTS, "query")) and files() == []


def test_what_a_killed_process_left_is_removed_after_a_day():
    stored = StoredEmbed(Counting(model(dropout=0).embed), "model", 1)
    old, new = (paths.cache() / "vectors" / f"{name}.npz.1.writing" for name in ("old", "new"))
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    stored(TEXTS, "query")
    assert new.exists() and not old.exists()
