"""`unitsphere encode`: its files hold what `Model.encode` says, one that is missing is made again, and mining and
indexes find with them what they find without."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from conftest import WORDS, command, composed
from unitsphere import artefact
from unitsphere.cli import index
from unitsphere.cli.encode import encode
from unitsphere.cli.mine import mine
from unitsphere.coded import Coded
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.search.codes import Int8
from unitsphere.search.folder import IndexFolder
from unitsphere.search.shards import Shards
from unitsphere.workers.encoding import Encoding
from unitsphere.workers.ray import Ray

TEXTS = [f"the {a} {b}" for a in WORDS[:8] for b in WORDS if a != b]  # 152
STRANGE = ["合同 \U0001f600", "Grüße\u2028zwei", "", "long " * 40, TEXTS[0]]


def embedder(seed=0, **options):
    nodes = {"_target_": "unitsphere.pooling.mean.MeanPooling"}, {"_target_": "unitsphere.embedder.Embedder", **options}
    return artefact.assemble(tiny(dropout=0, seed=seed), *nodes).eval()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A model, and a corpus of 157 documents, whose ids are no numbers."""
    monkeypatch.chdir(tmp_path)
    artefact.save(embedder(prompts={"query": "ask ", "document": "say "}), tmp_path / "model")
    write(tmp_path / "corpus.jsonl", [*TEXTS, *STRANGE])
    return tmp_path


def write(file, texts):
    rows = ({"_id": f"d{i}", "number": f"no {i}", "text": text} for i, text in enumerate(texts))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings(*overrides, model="model", corpus="corpus.jsonl", out="made"):
    arguments = [f"model={model}", f"corpus={corpus}", f"out={out}", "workers.threads=1", "rows=50"]
    return composed(*arguments, *overrides, root="encode")


def made(*overrides, **places):
    return encode(settings(*overrides, **places))


def expected(rows=50, role="document", **options):
    """By `Model.encode`, as many texts at a time as a file has rows."""
    model, texts = artefact.load("model"), [*TEXTS, *STRANGE]
    blocks = (texts[start : start + rows] for start in range(0, len(texts), rows))
    return np.concatenate([model.encode(block, role, **options) for block in blocks])


def read(folder="made"):
    table = pd.read_parquet(folder)
    return list(table["id"]), np.stack(list(table["vector"]))


def times(folder="made"):
    return {file.name: file.stat().st_mtime_ns for file in Path(folder).glob("part-*")}


def test_the_files_hold_what_the_model_says_in_order(folder):
    found = made()
    ids, vectors = read()  # by pandas, which knows nothing of the manifest beside them
    assert ids == [f"d{i}" for i in range(157)] and vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, expected())
    np.testing.assert_array_equal(np.concatenate(list(found.vectors())), vectors)
    assert [len(block) for block in found.vectors()] == [50, 50, 50, 7] and found.cut == {"128": 1}
    assert sorted(times()) == [f"part-0000{i}.parquet" for i in range(4)] and not list(folder.rglob("*.writing"))
    np.testing.assert_allclose(vectors, artefact.load("model").encode([*TEXTS, *STRANGE], "document"), atol=1e-6)
    said = json.loads((folder / "made" / "_manifest.json").read_text())
    assert said["identity"] == artefact.load("model").identity() and said["role"] == "document" and said["dim"] == 32


def test_role_length_and_width_are_what_was_asked_for(folder):
    made("role=query", "max_length=9", "dtype=float16", "rows=200")
    table = pd.read_parquet("made")
    assert table["vector"][0].dtype == np.float16
    np.testing.assert_array_equal(read()[1], expected(200, "query", max_length=9).astype(np.float16))


@pytest.mark.parametrize("kind", ["csv", "parquet", "txt"])
def test_a_corpus_of_another_kind(folder, kind):
    table = pd.DataFrame({"key": [f"k{i}" for i in range(60)], "name": "ignored", "body": TEXTS[:60], "title": "T"})
    if kind == "txt":
        Path("c.txt").write_text("\n".join(TEXTS[:60]) + "\n")
    else:
        getattr(table, f"to_{kind}")(f"c.{kind}", index=False)
    columns = [] if kind == "txt" else ["columns.id=key", "columns.text=body", "columns.title=null"]
    made(*columns, corpus=f"c.{kind}", out=kind)
    ids, vectors = read(kind)
    assert ids == ([str(i) for i in range(1, 61)] if kind == "txt" else list(table["key"]))
    np.testing.assert_allclose(vectors, artefact.load("model").encode(TEXTS[:60], "document"), atol=1e-6)


class Counting:
    """`Encoding` that counts its blocks, and dies where it is told to."""

    def __init__(self, monkeypatch, dies_at=None):
        self.blocks, original = 0, Encoding.__call__

        def counted(encoding, texts):
            if self.blocks == dies_at:
                raise KeyboardInterrupt
            self.blocks += 1
            return original(encoding, texts)

        monkeypatch.setattr(Encoding, "__call__", counted)


def test_only_what_is_missing_is_computed(folder, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        Counting(patched, dies_at=2)
        made()
    before = times()
    assert sorted(before) == ["part-00000.parquet", "part-00001.parquet"]
    with pytest.raises(UsageError, match=r"2 of 4 files are not there yet, the first is part-00002\.parquet"):
        Shards(folder / "made").check({})
    (folder / "made" / ".part-00002.parquet.7.writing").write_bytes(b"half")  # as kill -9 leaves it
    counting = Counting(monkeypatch)
    made()
    assert counting.blocks == 2 and before.items() <= times().items() and len(times()) == 4
    np.testing.assert_array_equal(read()[1], expected())
    assert not list(folder.rglob("*.writing"))
    (folder / "made" / "part-00001.parquet").write_bytes(b"PAR1 and then the disk was full")
    (folder / "made" / "part-00003.parquet").unlink()
    made()
    assert counting.blocks == 4
    made()
    assert counting.blocks == 4
    np.testing.assert_array_equal(read()[1], expected())


@pytest.mark.slow
def test_a_killed_process_loses_at_most_a_file(folder):
    write(folder / "corpus.jsonl", [f"{text} {i}" for i in range(300) for text in TEXTS])
    line = ["model=model", "corpus=corpus.jsonl", "out=made", "workers.threads=1", "rows=400"]
    process = subprocess.Popen([sys.executable, "-m", "unitsphere", "encode", *line], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (folder / "made" / "part-00004.parquet").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = times()
    assert 5 <= len(before) < 114 and len(Shards(folder / "made").missing()) == 114 - len(before)
    made("rows=400")
    assert before.items() <= times().items() and not Shards(folder / "made").missing()


@pytest.mark.parametrize(
    ("overrides", "change", "said"),
    [
        (["rows=60"], None, "begun with rows=50, and this is rows=60"),
        (["dtype=float16"], None, "dtype=float32, and this is dtype=float16"),
        (["role=query", "max_length=9"], None, r"role=document, max_length=128, and this is role=query, max_length=9"),
        ([], lambda: artefact.save(embedder(seed=1), Path("model")), r"model=\S+ \(\w{12}\), and this is model="),
        ([], lambda: write(Path("corpus.jsonl"), [*TEXTS, *STRANGE, "one more"]), "documents=157.*documents=158"),
        (
            [],
            lambda: write(Path("corpus.jsonl"), [*STRANGE, *TEXTS]),
            r"the texts of corpus.jsonl \(\w{12}\), and this",
        ),
        (["columns.id=number"], None, r"begun with the ids of corpus.jsonl \(\w{12}\), and this is the ids of"),
    ],
)
def test_a_folder_that_was_begun_otherwise_is_refused(folder, overrides, change, said):
    made()
    before = times()
    if change:
        change()
    with pytest.raises(UsageError, match=said):
        made(*overrides)
    assert times() == before


def test_the_same_corpus_elsewhere_and_the_model_s_own_limit_are_the_same(folder):
    made()
    (folder / "corpus.jsonl").rename(folder / "moved.jsonl")
    (folder / "model").rename(folder / "moved")
    before = times()
    made("max_length=128", model="moved", corpus="moved.jsonl")
    assert times() == before


@pytest.mark.parametrize(
    ("rows", "overrides", "said"),
    [
        ("", [], "is empty"),
        ('{"text": "a"}\n{"txt": "b"}\n', [], "bad.jsonl, row 2: an object with text expected"),
        ('{"text": "a"}\n{"text": null}\n', [], "row 2"),
        ('{"text": "a"}\nnonsense\n', [], "row 2"),
        ('{"_id": "x", "text": "a \\ud800"}\n', [], "row 1: half of a surrogate pair"),
        ('{"text": "a"}\n', ["columns.id=key"], "row 1: an object with key expected"),
        ('{"text": "a"}\n', ["columns.text=body"], "row 1: an object with body expected"),
        ('{"text": "a"}\n', ["role=passage"], "role=passage: document, query, symmetric would fit"),
        ('{"text": "a"}\n', ["rows=0"], "rows=0"),
        ('{"text": "a"}\n', ["dtype=int8"], "float32 or float16 would fit"),
        ('{"text": "a"}\n', ["model=nowhere/at_all"], "nowhere/at_all"),
        ('{"text": "a"}\n', ["out=model"], "is no folder of vectors"),
    ],
)
def test_bad_usage_leaves_nothing(folder, rows, overrides, said):
    (folder / "bad.jsonl").write_text(rows)
    before = sorted(folder.rglob("*"))
    with pytest.raises(UsageError, match=said):
        made(*overrides, corpus="bad.jsonl")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(("factor", "said"), [(np.nan, "may have diverged"), (1e6, "dtype=float32 would fit")])
def test_numbers_that_cannot_be_stored_are_refused(folder, monkeypatch, factor, said):
    monkeypatch.setattr("unitsphere.embedder.Embedder.encode", lambda self, texts, *_, **__: np.full((50, 32), factor))
    with pytest.raises(UsageError, match=f"document d0 is not finite in float16: .*{said}"):
        made("dtype=float16")
    assert not times()


def test_of_two_at_once_the_second_is_refused(folder):
    (folder / "made").mkdir()
    with (
        FileLock(folder / "made" / ".lock", timeout=0),
        pytest.raises(UsageError, match="made: another process is writing there"),
    ):
        made()
    made()
    np.testing.assert_array_equal(read()[1], expected())


def indexed(*overrides, **places):
    places = {"model": "model", "corpus": "corpus.jsonl", "out": "index"} | places
    arguments = [f"{key}={value}" for key, value in places.items()]
    return index.make(composed(*arguments, "threads=1", *overrides, root="index"))


def test_an_index_of_stored_vectors_is_the_index(folder, monkeypatch):
    made("rows=1000")
    one = indexed()
    monkeypatch.setattr("unitsphere.coded.Coded.floats", None)  # nothing is embedded
    two = indexed("vectors=made", out="again")
    assert (folder / "index" / "vectors").read_bytes() == (folder / "again" / "vectors").read_bytes()
    assert {str(limit): cut for limit, cut in one.about["cut"].items()} == two.about["cut"] == {"128": 1}
    assert list(two.ids) == list(one.ids) and IndexFolder(folder / "again").about["identity"] == one.about["identity"]


@pytest.mark.parametrize(
    ("typed", "overrides", "change", "said"),
    [
        (["role=query"], [], None, "made is of role=query, and this is role=document"),
        ([], ["max_length=9"], None, "max_length=128, and this is max_length=9"),
        ([], [], lambda: artefact.save(embedder(seed=1), Path("model")), r"made is of model=\S+ \(\w{12}\), and this"),
        ([], [], lambda: write(Path("corpus.jsonl"), TEXTS), "documents=157, .*documents=152"),
        ([], [], lambda: next(Path("made").glob("part-00001*")).unlink(), "1 of 4 files are not there yet"),
        ([], ["vectors=nowhere"], None, "nowhere: no vectors are there"),
        ([], ["model=small"], None, "small is stored as int8"),
    ],
)
def test_an_index_refuses_vectors_of_something_else(folder, typed, overrides, change, said):
    plain = Coded.of(artefact.load("model"))
    artefact.save(plain.stored_as(Int8.fitted(plain.floats(TEXTS, "document"))), folder / "small")
    made(*typed)
    if change:
        change()
    with pytest.raises(UsageError, match=said):
        indexed("vectors=made", *overrides)
    assert not (folder / "index").exists()


def mined(*overrides, source="dense", positives=TEXTS[:60]):
    pairs = [{"anchor": f"what is {text}", "positive": text} for text in positives]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    data = [
        "data=pairs",
        "data.path=pairs.jsonl",
        "data.held_out=5",
        f"source={source}",
        "filter=[near_duplicates]",
        "audit=10",
    ]
    run = mine(composed(*data, "model=model", "threads=1", "vector_cache=0", *overrides, root="mine"))
    return run, (run.folder / "negatives.jsonl").read_text()


def test_mining_with_stored_vectors_finds_the_same(folder, monkeypatch):
    made("rows=1000", "max_length=64")
    without = mined("corpus=corpus.jsonl")[1]
    roles, original = [], artefact.Embedder.embed

    def embed(self, texts, role, *rest):
        roles.append((role, len(texts)))
        return original(self, texts, role, *rest)

    monkeypatch.setattr(artefact.Embedder, "embed", embed)
    run, found = mined("corpus=corpus.jsonl", "vectors=made")
    assert found == without and run.metrics["negatives"] > 0 and "document" not in dict(roles)
    more = [f"not in the corpus: {i}" for i in range(20)]
    run, _ = mined("corpus=corpus.jsonl", "vectors=made", positives=[*TEXTS[:60], *more])
    assert dict(roles)["document"] == run.metrics["documents"] - 157 > 0
    with pytest.raises(UsageError, match=r"max_length=64.* and this is max_length=32"):
        mined("corpus=corpus.jsonl", "vectors=made", "max_length=32")
    with pytest.raises(UsageError, match=r"the texts of corpus.jsonl .*and this is .*the texts of data=pairs"):
        mined("vectors=made")
    with pytest.raises(UsageError, match=r"source=dense reads them, source=\[bm25\] does not"):
        mined("corpus=corpus.jsonl", "vectors=made", source="bm25")


def test_a_machine_without_ray_says_what_is_missing(folder, monkeypatch):
    monkeypatch.setattr("unitsphere.workers.ray.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'unitsphere\[ray\]'"):
        made("workers=ray")
    assert not (folder / "made").exists()


DEADLY = """
import os
from pathlib import Path
from unitsphere.embedder import Embedder

class Deadly(Embedder):
    def encode(self, texts, *args, **kwargs):
        once = Path("{once}")
        if "{text}" in texts and ({always} or not once.exists()):
            once.touch()
            os._exit(1)
        return super().encode(texts, *args, **kwargs)
"""


def on_ray(folder, *overrides, text="", always=False, **kwargs):
    """With a model that kills the process that encodes some text with it, once or always."""
    pytest.importorskip("ray", reason="the extra ray")
    (folder / "deadly.py").write_text(DEADLY.format(text=text, always=always, once=folder / "killed"))
    model = artefact.load("model")
    model.nodes["embedder"]["_target_"] = "deadly.Deadly"
    artefact.save(model, folder / "deadly")
    line = [
        "model=deadly",
        "corpus=corpus.jsonl",
        "out=on_ray",
        "rows=20",
        "workers=ray",
        "workers.count=2",
        *overrides,
    ]
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return command("encode", *line, env={**os.environ, "PYTHONPATH": path}, **kwargs)


@pytest.mark.slow
def test_ray_gives_the_vectors_of_one_process_and_survives_a_killed_worker(folder):
    done = on_ray(folder, text=TEXTS[110])
    assert (folder / "killed").exists() and "157 vectors of 32 numbers in 8 files" in done.stdout
    made("rows=20")
    assert read("on_ray")[0] == read()[0]
    np.testing.assert_array_equal(read("on_ray")[1], read()[1])
    for part in ("part-00000.parquet", "part-00006.parquet"):
        (folder / "on_ray" / part).unlink()
    before = times("on_ray")
    assert "part-00006.parquet written, 8 of 8" in on_ray(folder, "workers.count=1").stdout
    assert before.items() <= times("on_ray").items()
    np.testing.assert_array_equal(read("on_ray")[1], read()[1])


@pytest.mark.slow
def test_a_block_that_kills_every_worker_is_given_up_and_the_others_stay(folder):
    done = on_ray(folder, "workers.retries=1", text=TEXTS[110], always=True, check=False)
    assert done.returncode == 2 and "block 5: its worker was killed 2 times" in done.stderr
    assert "part-00004.parquet" in times("on_ray") and "part-00005.parquet" not in times("on_ray")
    done = on_ray(folder, "workers.threads=1000", check=False)
    assert done.returncode == 2 and "Ray has room for 0 such workers on 1 machines" in done.stderr


@pytest.mark.parametrize(("gpus", "room"), [(0.2, 5), (0.1, 10), (0.3, 3), (1, 1), (0, 16)])
def test_ray_has_as_much_room_as_there_is(monkeypatch, gpus, room):
    monkeypatch.setattr("unitsphere.workers.ray.find_spec", lambda name: name)
    assert Ray(gpus=gpus)._room([{"Resources": {"CPU": 16.0, "GPU": 1.0}, "Alive": True}]) == room
