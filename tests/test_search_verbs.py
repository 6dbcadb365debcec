"""`unitsphere index`, `search` and `migrate`: what is found is what sorting all cosines, BM25 and fusion say; what is
written comes whole or not at all; bad usage is one message."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge

from conftest import WORDS, command, composed
from unitsphere import artefact
from unitsphere.build import build
from unitsphere.cli import index as index_verb
from unitsphere.cli import migrate as migrate_verb
from unitsphere.cli import search as search_verb
from unitsphere.coded import Coded
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.search import fusion
from unitsphere.search.alignment import agreement, least_squares, procrustes
from unitsphere.search.bm25 import BM25
from unitsphere.search.codes import Int8
from unitsphere.search.folder import IndexFolder

TEXTS = [f"the {a} {b}" for a in WORDS for b in WORDS if a != b]  # 380
QUERIES = ["what's a red, old cat?", "合同 Grüße", "the fish"]


def embedder(seed=0, **options):
    nodes = {"_target_": "unitsphere.pooling.mean.MeanPooling"}, {"_target_": "unitsphere.embedder.Embedder", **options}
    return artefact.assemble(tiny(dropout=0, seed=seed), *nodes).eval()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A model, another one, and a corpus of which one document has a title, no id, and strange characters."""
    monkeypatch.chdir(tmp_path)
    artefact.save(embedder(prompts={"query": "ask "}), tmp_path / "old")
    artefact.save(embedder(seed=1), tmp_path / "new")
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
    rows += [{"title": "Verträge", "text": "合同 \U0001f600 \n two lines"}, {"_id": "empty", "text": ""}]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def make(*overrides, model="old", corpus="corpus.jsonl", out="made"):
    return index_verb.make(
        composed(f"model={model}", f"corpus={corpus}", f"out={out}", "threads=1", *overrides, root="index")
    )


def ask(*overrides, queries=QUERIES, of="made"):
    config = composed(f"in={of}", "threads=1", *overrides, root="search")
    return search_verb.search(config, [(str(i), text) for i, text in enumerate(queries)])


def cosines(folder, queries=QUERIES):
    """What the model says of all documents, read without the index."""
    model = artefact.load(folder / "old")
    texts = [*TEXTS, "Verträge 合同 \U0001f600 \n two lines", ""]
    return texts, model.embed(queries, "query") @ model.embed(texts, "document").T


@pytest.mark.parametrize("option", ["exact", "hnsw", "ivf", "int8"])
def test_what_is_found_are_the_largest_cosines(folder, option):
    made = make(f"index={option}")
    texts, scores = cosines(folder)
    assert len(made) == 382 and made.texts[380] == texts[380] and made.ids[380] == "381" and made.ids[381] == "empty"
    found = ask("k=7")
    for of_query, expected in zip(found, scores, strict=True):
        best = np.sort(expected)[::-1][:7]
        assert [hit["rank"] for hit in of_query] == list(range(1, 8))
        np.testing.assert_allclose(
            [hit["score"] for hit in of_query], best, atol={"exact": 1e-5, "int8": 0.02}.get(option, 0.01)
        )
        for hit in of_query:
            assert made.texts[list(made.ids).index(hit["id"])] == hit["text"] == texts[list(made.ids).index(hit["id"])]
    assert option == "hnsw" or {len(hits) for hits in ask("k=383")} == {382}  # which walks a graph, and may miss some
    assert not list(folder.glob("*.writing")) and made.about["vector_bytes"] == 128
    assert json.loads((folder / "made" / "index.json").read_text())["model"] == str(folder / "old")


def test_a_compressed_model_is_stored_in_its_bytes_and_searched_by_them(folder):
    model = Coded.of(artefact.load(folder / "old"))
    small = model.stored_as(Int8.fitted(model.floats(TEXTS, "document")))
    artefact.save(small, folder / "small")
    made = make(model="small")
    assert (folder / "made" / "vectors").stat().st_size == 382 * 32 and made.about["vector_bytes"] == 32
    expected = small.embed(QUERIES, "query") @ small.embed(list(made.texts), "document").T
    found = ask("k=5")
    np.testing.assert_allclose(
        [[h["score"] for h in hits] for hits in found], -np.sort(-expected, axis=1)[:, :5], atol=1e-5
    )


@pytest.mark.parametrize("hybrid", ["rrf", "weighted"])
def test_words_and_vectors_are_put_together(folder, hybrid):
    make("bm25.k1=1.2")
    texts, scores = cosines(folder)
    dense = np.argsort(-scores, axis=1, kind="stable")[:, :50]
    rankings = [(np.take_along_axis(scores, dense, 1), dense), BM25(texts, k1=1.2).search(QUERIES, 50)]
    weights = [0.3, 0.7]
    expected = fusion.reciprocal_rank(rankings, 5, 10) if hybrid == "rrf" else fusion.weighted(rankings, weights, 5)
    option = "hybrid.c=10" if hybrid == "rrf" else "hybrid.weights=[0.3,0.7]"
    found = ask(f"hybrid={hybrid}", option, "candidates=50", "k=5")
    np.testing.assert_allclose([[h["score"] for h in hits] for hits in found], expected[0], atol=1e-4)


def test_a_reranker_orders_the_first_ones(folder, monkeypatch):
    class Longest:
        def __init__(self, path):
            assert path == "any"

        def __call__(self, pairs):
            return np.array([[len(document)] for _, document in pairs], np.float32)

    monkeypatch.setattr("unitsphere.encoders.cross_encoder.CrossEncoder", lambda path, max_length: Longest(path))
    make()
    plain, ranked = ask("k=10"), ask("k=10", "reranker=any", "depth=8")
    for before, after in zip(plain, ranked, strict=True):
        first = sorted(before[:8], key=lambda hit: -len(hit["text"]))
        assert [hit["id"] for hit in after] == [hit["id"] for hit in [*first, *before[8:]]]
        assert [hit["score"] for hit in after[:8]] == [len(hit["text"]) for hit in first]


def test_bm25_from_disk_scores_the_same(tmp_path):
    for number, documents in enumerate([TEXTS, ["", "?"], ["dogs run", "搜索引擎"]]):
        index = BM25(documents, k1=0.9, stemmer="english")
        index.write(tmp_path / str(number))
        again = BM25.read(tmp_path / str(number))
        for query in ("the red dog runs", "搜索", ""):
            assert (again.scores(query) == index.scores(query)).all() and again.size == index.size


def said_by(verb, capsys, *arguments):
    """What a verb prints, in this process."""
    capsys.readouterr()
    verb.main([*arguments, "threads=1"])
    return capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_both_verbs_on_the_command_line(folder, capsys):
    assert (
        said_by(index_verb, capsys, "model=old", "corpus=corpus.jsonl", "out=made")[0]
        == "382 documents, 128 bytes a vector on disk, exact"
    )
    strange = "what's a {red}, ${old} cat = 'dog'\\"
    lines = said_by(search_verb, capsys, "in=made", f"query={strange}", "query=Grüße", "k=3")
    assert lines[0] == strange and lines[4] == "Grüße" and len(lines) == 8
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    assert command("search", "in=made", f"query={strange}", "k=3", cwd=folder).stdout.splitlines()[-4:] == lines[:4]
    (folder / "asked.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{i}", "text": q}) + "\n" for i, q in enumerate(QUERIES))
    )
    said_by(search_verb, capsys, "in=made", "queries=asked.jsonl", "out=new/found.jsonl", "hybrid=rrf", "k=4")
    found = [json.loads(line) for line in (folder / "new" / "found.jsonl").read_text().splitlines()]
    assert [line["_id"] for line in found] == ["q0", "q1", "q2"] and all(len(line["found"]) == 4 for line in found)
    assert found[0]["found"] == ask("hybrid=rrf", "k=4")[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["in=made"], "give one of query="),
        (["in=made", "query=a", "queries=corpus.jsonl"], "give one of query="),
        (["in=made", "query=  "], "the query 1 has no text"),
        (["in=made", "query=a", "query=a \udcff"], "the query 2 is not Unicode"),
        (["in=made", "query=a", "k=0"], "k=0, depth=20, candidates=100: 1 or more would fit"),
        (["in=made", "query=a", "k=abc"], "k=abc: a number would fit"),
        (["in=made", "query=a", "hybrid=weighted", "hybrid.weights=[1]"], "2 numbers, one a ranking"),
        (["in=nowhere", "query=a"], "nowhere: no index is there"),
        (["query=a"], "in must be given"),
        (["in=made", "query=a", "out=made"], "is there already"),
        (["in=made", "queries=nothing.txt"], "nothing.txt is empty"),
        (["in=made", "query=a", "model=new"], "is another model"),
        (["in=made", "query=a", "reranker=old"], "no cross-encoder"),
    ],
)
def test_bad_searches_are_one_message(folder, capsys, arguments, said):
    make()
    (folder / "nothing.txt").write_text("\n")
    with pytest.raises(SystemExit) as stopped:
        search_verb.main([*arguments, "threads=1"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and said in error and "Traceback" not in error


def test_another_model_at_the_same_place_is_told(folder):
    make()
    artefact.save(embedder(seed=1), folder / "old")
    with pytest.raises(UsageError, match=r"was made by .*old \(\w{12}\), and .*old is another model \(\w{12}\)"):
        ask()
    (folder / "old").rename(folder / "moved")
    with pytest.raises(UsageError, match="model=… says where it is now"):
        ask()


def test_an_index_calls_nothing_but_an_index(folder):
    make()
    about = json.loads((folder / "made" / "index.json").read_text())
    (folder / "made" / "index.json").write_text(json.dumps(about | {"index": {"_target_": "builtins.print"}}))
    with pytest.raises(UsageError, match=r"made/index.json: index._target_=builtins.print"):
        ask()


@pytest.mark.parametrize(
    ("rows", "overrides", "said"),
    [
        ("", [], "is empty"),
        ('{"text": "a"}\n{"txt": "b"}\n', [], "row 2"),
        ('{"text": "a"}\nnonsense\n', [], "row 2"),
        ('{"text": "a"}\n{"_id": "x", "text": "a \\ud800"}\n', [], "row 2: half of a surrogate pair"),
        ('{"_id": "a", "text": "a"}\n\n{"_id": "a", "text": "b"}\n', [], "rows 1 and 3 have the same id, 'a'"),
        ('{"_id": "2", "text": "a"}\n{"text": "b"}\n', [], "rows 1 and 2 have the same id, '2'"),
        ('{"text": "a"}\n', ["max_length=2"], "max_length=2: a whole number over 2, the special tokens"),
        ('{"text": "a"}\n', ["max_length=abc"], "max_length=abc: a whole number over 2"),
        ('{"text": "a"}\n', ["index=ivf", "index.nprobe=0"], "index.nprobe=0: 1 or more"),
        ('{"text": "a"}\n', ["index=pq"], "PQ48"),
        ('{"text": "a"}\n', ["model=nowhere/at_all"], "nowhere/at_all"),
        ('{"text": "a"}\n', ["out=there"], "there is there already"),
        ('{"text": "a"}\n', ["bm25.stemmer=klingon"], "klingon"),
    ],
)
def test_bad_corpora_leave_nothing(folder, rows, overrides, said):
    (folder / "there").mkdir()
    (folder / "bad.jsonl").write_text(rows)
    with pytest.raises(UsageError, match=said):
        make(*overrides, corpus="bad.jsonl")
    assert not list(folder.glob("made*"))


def test_words_that_were_left_out_are_missed(folder):
    make("bm25=null")
    assert len(ask("k=2")[0]) == 2
    with pytest.raises(UsageError, match="bm25=null"):
        ask("hybrid=rrf")


def vectors(n, dim, seed):
    z = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def rotation(a, b, seed=3):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(max(a, b), max(a, b))))[0][:a, :b]


def test_procrustes_is_scipys_and_finds_a_planted_rotation():
    old, new = vectors(60, 12, 0), vectors(60, 12, 1)
    np.testing.assert_allclose(procrustes(old, new).matrix, orthogonal_procrustes(old, new)[0], atol=1e-5)
    planted = rotation(12, 12)
    np.testing.assert_allclose(procrustes(old, old @ planted).matrix, planted, atol=1e-5)
    np.testing.assert_allclose(procrustes(old, old @ planted)(old), old @ planted, atol=1e-5)


def test_procrustes_into_more_and_into_fewer_numbers():
    old, wide = vectors(60, 12, 0), rotation(12, 20)  # orthonormal rows
    found = procrustes(old, old @ wide)
    np.testing.assert_allclose(found.matrix, wide, atol=1e-5)
    np.testing.assert_allclose(found(old) @ found(old).T, old @ old.T, atol=1e-5)
    new = vectors(60, 5, 2)
    narrow = procrustes(old, new)
    np.testing.assert_allclose(narrow.matrix.T @ narrow.matrix, np.eye(5), atol=1e-5)
    best = ((old @ narrow.matrix) * new).sum()
    for seed in range(50):
        assert ((old @ rotation(12, 5, seed)) * new).sum() <= best + 1e-5


@pytest.mark.parametrize("ridge", [1e-6, 0.3])
def test_least_squares_is_sklearns_ridge(ridge):
    old, new = vectors(60, 12, 0), vectors(60, 7, 1) + 0.2
    theirs = Ridge(alpha=ridge * 60).fit(old.astype(float), new.astype(float))
    found = least_squares(old, new, ridge)
    np.testing.assert_allclose(found.matrix, theirs.coef_.T, atol=1e-4)
    np.testing.assert_allclose(found.shift, theirs.intercept_, atol=1e-4)
    with pytest.raises(UsageError, match="more than 0"):
        least_squares(old, new, 0)


def test_agreement_counts_neighbours_without_the_document_itself():
    mapped, new = vectors(30, 6, 0), vectors(30, 6, 1)
    shared = []
    for i in range(30):
        order = [[j for j in np.argsort(-(among @ new[i])) if j != i][:4] for among in (new, mapped)]
        shared.append(len(set(order[0]) & set(order[1])) / 4)
    found = agreement(mapped, new, 4)
    assert found["neighbours@4"] == pytest.approx(np.mean(shared))
    assert found["cosine"] == pytest.approx(np.mean([a @ b for a, b in zip(mapped, new, strict=True)]), abs=1e-6)
    assert agreement(new, new, 4) == {"cosine": pytest.approx(1), "neighbours@4": 1}


def rotated(folder):
    """The old model behind a rotation: a new one whose map is known."""
    model = Coded.of(artefact.load(folder / "old"))
    turned = build({"_target_": "unitsphere.compression.vectors.random_rotation.RandomRotation", "dim": 32})
    from unitsphere.compression.step import Context

    artefact.save(turned.apply(model, Context([], None, folder, 5)), folder / "turned")


def beir(folder):
    """The corpus as a BEIR folder, with queries whose answers are the old model's nearest."""
    made = folder / "words"
    (made / "qrels").mkdir(parents=True)
    (made / "corpus.jsonl").write_text(
        (folder / "corpus.jsonl").read_text().replace('{"title"', '{"_id": "381", "title"')
    )
    _, scores = cosines(folder)
    (made / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{i}", "text": q}) + "\n" for i, q in enumerate(QUERIES))
    )
    ids = [f"d{i}" for i in range(380)] + ["381", "empty"]
    rows = [f"q{i}\t{ids[row]}\t1\n" for i, of in enumerate(scores) for row in np.argsort(-of)[:3]]
    (made / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return made


def migrated(*overrides, model, **kwargs):
    arguments = ["from=made", f"model={model}", "out=moved", "sample=200", "held_out=100", "threads=1"]
    return migrate_verb.migrate(composed(*arguments, *overrides, root="migrate"))


@pytest.mark.parametrize("alignment", ["procrustes", "least_squares"])
def test_a_planted_rotation_migrates_without_loss(folder, alignment):
    make("bm25.k1=1.2")
    rotated(folder)
    ridge = ["alignment.ridge=1e-9"] if alignment == "least_squares" else []
    moved = migrated(f"alignment={alignment}", *ridge, f"path={beir(folder)}", model="turned")
    said = moved.about["migration"]
    assert said["cosine"] == pytest.approx(1, abs=1e-4) and said["neighbours@10"] > 0.99
    assert [way["words/recall@10"] for way in said["retrieval"].values()] == [1, 1, 1]
    again = artefact.load("turned")
    np.testing.assert_allclose(moved.vectors.read(0, 382), again.embed(list(moved.texts), "document"), atol=1e-3)
    before, after = (ask("k=3", of=of) for of in ("made", "moved"))
    np.testing.assert_allclose(
        [[h["score"] for h in q] for q in after], [[h["score"] for h in q] for q in before], atol=1e-3
    )
    assert ask("hybrid=rrf", of="moved") and list(moved.ids) == list(IndexFolder(folder / "made").ids)


def test_another_model_loses_something_and_it_is_said(folder):
    make()
    said = migrated(f"path={beir(folder)}", model="new").about["migration"]
    old, mapped, upper = said["retrieval"].values()
    assert old["words/recall@10"] == 1 and upper["words/recall@10"] < 1
    assert 0 < said["cosine"] < 1 and said["neighbours@10"] < 1 and said["seconds_to_embed_all"] > 0
    assert set(mapped) == set(old) == {f"words/{m}" for m in migrate_verb.MEASURES}


@pytest.mark.parametrize(
    ("overrides", "model", "said"),
    [
        (["sample=300"], "new", "at most the index's 382 documents"),
        (["held_out=10"], "new", "more than 10"),
        ([], "old", "is the one that made"),
        (["from=nowhere"], "new", "no index is there"),
        (["path=other"], "new", "has no document 'x'"),
        (["path=nowhere"], "new", "no BEIR data set"),
        (["path=other", "old_model=new"], "new", "has no document 'x'"),
    ],
)
def test_bad_migrations_leave_nothing(folder, overrides, model, said):
    make()
    made = beir(folder)
    made.rename(folder / "other")
    with (folder / "other" / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "x", "text": "x"}\n')
    with pytest.raises(UsageError, match=said):
        migrated(*overrides, model=model)
    assert not list(folder.glob("moved*"))


def test_migrating_on_the_command_line(folder, capsys):
    make()
    arguments = ["from=made", "model=new", "out=moved", "sample=200", "held_out=100", f"path={beir(folder)}"]
    said = "\n".join(said_by(migrate_verb, capsys, *arguments))
    assert "procrustes, learned from 200 documents; on 100 others the cosine" in said and "words/recall@10" in said
    assert "less is found than by the old model" in said
    assert len(said_by(search_verb, capsys, "in=moved", "query=the fish", "k=2")) == 3
