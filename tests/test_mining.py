"""Mining against a slow search written out, and what must never be mined."""

import json
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chisquare

from conftest import command, composed
from unitsphere import artefact
from unitsphere.cli.mine import mine
from unitsphere.data.preparation.mined import Mined
from unitsphere.data.rows import Rows
from unitsphere.embedder import Embedder
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.mining import audit
from unitsphere.mining.candidates import Found, Places, with_positives
from unitsphere.mining.filters import CrossEncoderMargin, Margin, NearDuplicates
from unitsphere.mining.instructed import Instructed
from unitsphere.mining.miner import Miner
from unitsphere.mining.sources import Dense, Lexical, Random, drawn
from unitsphere.search.dense import Approximate, Exact, search, unit
from unitsphere.search.vectors import VectorFile
from unitsphere.similar import Near


def space(queries=12, documents=80, seed=0):
    """Texts with made-up vectors, the embedding function that knows them, and two positives for every third query."""
    generator = np.random.default_rng(seed)
    texts = [f"query {i}" for i in range(queries)], [f"document {i}" for i in range(documents)]
    known = dict(zip(texts[0] + texts[1], unit(generator.normal(size=(queries + documents, 8))), strict=True))
    positives = [[f"document {i}"] + [f"document {i + 40}"] * (i % 3 == 0) for i in range(queries)]

    def embed(some, role, max_length=None, prompt=None):
        return np.stack([known[text] for text in some]).astype(np.float32)

    return *texts, positives, embed, known


def attached(source, documents, embed, folder):
    source.attach(documents, embed, folder, None)
    return source


def slowly(queries, documents, positives, known, quota, first, last, relative):
    """The negatives' rows, query by query, document by document."""
    mined = []
    for query, right in zip(queries, positives, strict=True):
        lowest = min(known[query] @ known[text] for text in right)
        threshold = lowest - relative * abs(lowest)
        ranked = sorted((-(known[query] @ known[d]), row) for row, d in enumerate(documents) if d not in right)
        allowed = [(score, row) for rank, (score, row) in enumerate(ranked, 1) if first <= rank <= last]
        mined.append([row for score, row in allowed if -score <= threshold][:quota])
    return mined


@pytest.mark.parametrize("relative", [-9.0, 0.05, 0.5])
@pytest.mark.parametrize(("first", "last"), [(1, 100), (3, 20)])
def test_dense_mining_is_the_slow_search(tmp_path, relative, first, last):
    queries, documents, positives, embed, known = space()
    positives = [
        [d for d in right if known[q] @ known[d] > 0] or right for q, right in zip(queries, positives, strict=True)
    ]
    source = attached(Dense(Exact(), quota=4, first=first, last=last), documents, embed, tmp_path)
    mined = Miner(documents, {"dense": source}, {"margin": Margin(relative=relative)})(queries, positives)
    expected = slowly(queries, documents, positives, known, 4, first, last, relative)
    assert [[n.row for n in negatives] for negatives in mined] == expected
    assert any(expected)
    for query, negatives in zip(queries, mined, strict=True):
        for n in negatives:
            assert n.scores["score"] == pytest.approx(known[query] @ known[documents[n.row]], abs=1e-5)
            assert n.source == "dense" and first <= n.rank <= last


def test_texts_are_mined_under_their_own_instructions(tmp_path):
    queries, documents, positives, plain, _ = space()
    rows = Rows(
        anchor=queries,
        positive=[right[0] for right in positives],
        anchor_instruction=[None if i % 2 else f"find {i % 4}: " for i in range(12)],
        positive_instruction=["is: "] * 12,
    )
    asked = {}

    def recording(some, role, max_length=None, prompt=None):
        asked.update({(role, text): prompt for text in some})
        return plain(some, role)

    embed = Instructed(recording, rows.instructions)
    assert np.array_equal(embed(queries, "query"), plain(queries, "query"))  # in the order given
    source = attached(Dense(Exact()), documents, embed, tmp_path)
    Miner(documents, {"dense": source}, {})(queries, positives)
    for i, (query, right) in enumerate(zip(rows.anchor, rows.positive, strict=True)):
        assert asked["query", query] == rows.anchor_instruction[i] and asked["document", right] == "is: "
    assert asked["document", "document 70"] is None


@pytest.mark.parametrize("instructed", [True, False])
def test_the_verb_reads_what_training_reads(tmp_path, monkeypatch, instructed):
    lines = [{"anchor": f"number {i}", "positive": f"it is {i}", "say": "find: ", "is": "is: "} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = ["+data.columns.anchor_instruction=say", "+data.columns.positive_instruction=is"] if instructed else []
    asked, embed = set(), Embedder.embed

    def recording(self, texts, role, max_length=None, prompt=None):
        asked.update((role, prompt) for _ in texts)
        return embed(self, texts, role, max_length, prompt)

    monkeypatch.setattr(Embedder, "embed", recording)
    encoder = tiny()
    made = artefact.assemble(
        encoder, {"_target_": "unitsphere.pooling.mean.MeanPooling"}, {"_target_": "unitsphere.embedder.Embedder"}
    )
    artefact.save(made, tmp_path / "model")
    mine(
        composed(
            "data=pairs", f"data.path={tmp_path / 'rows.jsonl'}", *columns, f"model={tmp_path / 'model'}", "source=dense",
            "audit=0", "threads=1", f"outputs={tmp_path}", root="mine",
        )
    )  # fmt: skip
    assert asked == (
        {("query", "find: "), ("document", "is: ")} if instructed else {("query", None), ("document", None)}
    )


def test_no_positive_no_query_and_no_text_equal_to_one_is_mined():
    documents = ["sort an array", "Sort  an ARRAY", "sort a list", "how to sort", "a tree"]
    source = attached(Lexical(quota=5), documents, None, None)
    mined = Miner(documents, {"bm25": source}, {})(["how to sort"], [["sort an array"]])
    assert [documents[n.row] for n in mined[0]] == ["sort a list"]  # "a tree" shares no word, the rest are barred


def test_quotas_and_ranks_are_each_source_s_own_and_no_document_is_taken_twice(tmp_path):
    queries, documents, positives, embed, _ = space()
    sources = {
        "dense": attached(Dense(Exact(), quota=2), documents, embed, tmp_path),
        "again": attached(Dense(Exact(), quota=3), documents, embed, tmp_path),
        "random": attached(Random(quota=2), documents, embed, tmp_path),
    }
    for negatives, right in zip(Miner(documents, sources, {})(queries, positives), positives, strict=True):
        assert [n.rank for n in negatives][:5] == [1, 2, 3, 4, 5]
        assert len({n.row for n in negatives}) == len(negatives) == 7
        assert not {documents[n.row] for n in negatives} & set(right)
        assert all("score" not in n.scores for n in negatives if n.source == "random")


def test_a_random_pick_is_a_function_of_its_seed_and_keeps_to_what_is_allowed(tmp_path):
    queries, documents, positives, embed, _ = space()
    source = attached(Dense(Exact(), quota=3, first=2, last=9), documents, embed, tmp_path)

    def picked(seed):
        return Miner(documents, {"dense": source}, {}, "random", seed)(queries, positives)

    assert picked(1) == picked(1) != picked(2)
    assert all(2 <= n.rank <= 9 for negatives in picked(1) for n in negatives)


@pytest.mark.parametrize("count", [40, 5000])
def test_random_negatives_do_not_depend_on_how_deep_others_look(count):
    seen = {k: drawn(np.random.default_rng(1), count, k).tolist() for k in (1, 7, 30, 40)}
    for k, rows in seen.items():
        assert rows == seen[40][:k] and len({*rows}) == k and max(rows) < count
    assert sorted(seen[40]) == list(range(40)) or count > 40
    every = np.bincount([drawn(np.random.default_rng(i), 40, 1)[0] for i in range(4000)], minlength=40)
    assert chisquare(every).pvalue > 0.001


def found(scores, positive, queries=None, documents=None, rows=None, labelled=None):
    scores = np.array(scores, float)
    rows = np.array(rows if rows is not None else np.tile(np.arange(scores.shape[1]), (len(scores), 1)))
    labelled = labelled or [np.empty(0, int)] * len(scores)
    return Found("dense", queries or ["q"] * len(scores), documents or [], rows, scores, labelled, np.array(positive))


def test_margins():
    candidates, keep = found([[0.9, 0.76, 0.7, 0.2]], [0.8]), np.ones((1, 4), bool)

    def kept(**settings):
        return Margin(**({"relative": None} | settings))(candidates, keep)[0].tolist()

    assert kept() == [True] * 4
    assert kept(relative=0.05) == [False, True, True, True]  # 0.76 is 95% of 0.8
    assert kept(relative=0.06) == [False, False, True, True]
    assert kept(absolute=0.1) == [False, False, True, True]
    assert kept(highest=0.7, lowest=0.3) == [False, False, True, False]
    unlabelled = found([[0.9, 0.1]], [np.nan])
    assert Margin(absolute=0.1)(unlabelled, np.ones((1, 2), bool)).all()  # there is nothing to compare with


def test_near_duplicates_by_the_slow_formula():
    documents = [
        "return the sorted array",
        "return the sorted arrays",
        "Return  the sorted array!",
        "a graph",
        "return",
    ]
    candidates = found([[4, 3, 2, 1]], [0.0], ["sort"], documents, [[1, 2, 3, 4]], [np.array([0])])

    def shingles(text):
        text = " ".join(text.casefold().replace("!", "").split())
        return {text[i : i + 5] for i in range(len(text) - 4)}

    a = shingles(documents[0])
    for threshold in (0.5, 0.8, 0.9, 1.0):
        expected = [len(a & shingles(d)) / len(a | shingles(d)) < threshold for d in documents[1:]]
        kept = NearDuplicates(Near(threshold))(candidates, np.ones((1, 4), bool))[0].tolist()
        assert kept == expected
    assert {True, False} == set(NearDuplicates(Near(0.8))(candidates, np.ones((1, 4), bool))[0].tolist())


def test_a_cross_encoder_is_asked_about_the_first_that_are_left_only():
    asked = []
    logits = {"p": 2.0, "p2": 1.0, "n1": 1.5, "n2": 0.5, "n3": 0.9, "n4": -3.0}

    def scorer(pairs):
        asked.extend(pairs)
        return np.array([[logits[document]] for _, document in pairs])

    documents = list(logits)
    candidates = found([[9, 8, 7, 6]], [9.0], ["q"], documents, [[2, 3, 4, 5]], [np.array([0, 1])])
    left = np.array([[True, True, True, True]])
    kept = CrossEncoderMargin(lambda: scorer, margin=0.2, candidates=3)(candidates, left)
    assert kept[0].tolist() == [False, True, False, False]  # 1.5 and 0.9 are over 1.0 - 0.2; n4 was not asked
    assert ("q", "n4") not in asked and len(asked) == 5
    assert candidates.more["cross_encoder"][0, :3].tolist() == [1.5, 0.5, 0.9]
    nothing = CrossEncoderMargin(lambda: scorer)(candidates, np.zeros((1, 4), bool))
    assert not nothing.any()


def test_the_audit_counts_hidden_positives_that_would_be_taken(tmp_path):
    """Two positives that lie together, and one that is far away."""
    vectors = {"q": [1, 0], "near": [0.99, 0.1], "twin": [0.98, 0.12], "far": [-1, 0.1], "other": [0.5, 0.8]}
    vectors |= {"lone": [0, 1], "its own": [0.1, 0.9]}

    def embed(texts, role, max_length=None, prompt=None):
        return np.array([vectors[text] for text in texts], np.float32)

    documents = ["near", "twin", "far", "other", "its own"]
    source = attached(Dense(Exact(), quota=1), documents, embed, tmp_path)
    queries, positives = ["q", "lone"], [["near", "twin"], ["its own"]]
    free = audit.hidden_positives(Miner(documents, {"dense": source}, {}), queries, positives, 10)
    assert free == {
        "hidden/several": 2, "false_negatives/several": 1.0, "hidden/single": 1, "false_negatives/single": 1.0,
    }  # fmt: skip
    margin = Miner(documents, {"dense": source}, {"margin": Margin(relative=0.05)})
    strict = audit.hidden_positives(margin, queries, positives, 10)
    assert strict["false_negatives/several"] == 0 and strict["false_negatives/single"] == 1
    assert audit.hidden_positives(margin, queries, [["elsewhere"], []], 10) == {"hidden/several": 0, "hidden/single": 0}


def test_the_audit_s_cross_encoder_share(tmp_path):
    queries, documents, positives, embed, _ = space()
    source = attached(Dense(Exact(), quota=3), documents, embed, tmp_path)
    mined = Miner(documents, {"dense": source}, {})(queries, positives)
    rule = {text: i % 7 for i, text in enumerate(documents)}
    out = audit.agreement(
        lambda pairs: np.array([[rule[d]] for _, d in pairs]), documents, queries, positives, mined, 99
    )
    over = [
        rule[documents[n.row]] >= min(rule[text] for text in right)
        for right, negatives in zip(positives, mined, strict=True)
        for n in negatives
    ]
    assert out == {"cross_encoder/queries": 12, "cross_encoder/over_positive": pytest.approx(np.mean(over))}
    assert 0 < np.mean(over) < 1


def test_places_find_every_copy_of_a_text():
    documents = ["a b", "c", "A  B", "ä", "a b"]
    assert Places(documents).of(["a b", "zzz"]).tolist() == [0, 2, 4]
    assert Places(documents).of([]).tolist() == []


def test_a_positive_outside_the_corpus_is_held_against_too(tmp_path):
    queries, documents, positives, embed, known = space()
    outside = [d for d in documents if not any(d in right for right in positives)]
    joined = with_positives(outside, positives)
    assert [*joined][: len(outside)] == outside and sorted({*joined}) == sorted(documents)
    assert len(joined) == len(documents) and with_positives(documents, positives) is documents
    source = attached(Dense(Exact(), quota=4), joined, embed, tmp_path)
    mined = Miner(joined, {"dense": source}, {"margin": Margin()})(queries, positives)
    expected = slowly(queries, [*joined], positives, known, 4, 1, 100, 0.05)
    assert [[n.row for n in negatives] for negatives in mined] == expected


def test_many_copies_of_one_query_s_positive_cost_the_others_nothing():
    documents = ["see attached"] * 500 + ["see the tree", "see the house"]
    source = attached(Lexical(quota=2, last=3), documents, None, None)
    mined = Miner(documents, {"bm25": source}, {})(["see house", "see it"], [["see the tree"], ["See attached."]])
    assert documents[mined[0][0].row] == "see the house"
    assert not {documents[n.row] for n in mined[1]} & {"see attached"}


def test_exact_search_in_blocks_and_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("unitsphere.search.dense.BLOCK", 7)
    generator = np.random.default_rng(0)
    queries, documents = generator.normal(size=(5, 6)).astype("f"), generator.normal(size=(40, 6)).astype("f")
    expected = np.argsort(-(queries @ documents.T), axis=1)[:, :12]
    file = VectorFile.written(tmp_path / "v", [documents[:13], documents[13:]])
    for source in (documents, file):
        scores, rows = search(queries, source, 12)
        assert (rows == expected).all()
        assert np.allclose(scores, np.take_along_axis(queries @ documents.T, rows, 1), atol=1e-6)
    assert np.array_equal(file.take(np.array([3, 39, 3])), documents[[3, 39, 3]]) and len(file) == 40


@pytest.mark.parametrize("factory", ["IVF{lists},Flat", "HNSW32,Flat"])
def test_approximate_indices_find_most_neighbours(factory):
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(30, 16))
    documents = unit(centres[generator.integers(30, size=3000)] + 0.3 * generator.normal(size=(3000, 16))).astype("f")
    index = Approximate(factory)
    index.build(documents)
    _, rows = index.search(documents[:100], 10)
    _, exact = search(documents[:100], documents, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact, strict=True)]) > 0.9


def test_an_index_that_faiss_does_not_know():
    with pytest.raises(UsageError, match="Flot"):
        Approximate("Flot").build(np.eye(4, dtype=np.float32))


@pytest.mark.parametrize("settings", [{"first": 0}, {"first": 5, "last": 4}, {"quota": 0}])
def test_ranks_that_make_no_sense(settings):
    with pytest.raises(UsageError, match="would fit"):
        Lexical(**settings)


def test_the_verb_writes_what_trains(pairs, tmp_path):
    config = composed(
        "encoder=tiny", "data=pairs", f"data.path={pairs}", "data.held_out=10", "source=[bm25,dense,random]",
        "source.dense.quota=2", "filter=[near_duplicates]", "audit=20", "threads=1", f"outputs={tmp_path}", "name=mined", root="mine",
    )  # fmt: skip
    run = mine(config)
    assert run.info["status"] == "done" and run.metrics["negatives"] > 0
    lines = [json.loads(line) for line in (run.folder / "negatives.jsonl").read_text().splitlines()]
    positives = defaultdict(set)
    for line in lines:
        positives[line["anchor"]].add(line["positive"])
    for line in lines:
        assert len(line["negative"]) == len(line["mined"]) and not set(line["negative"]) & positives[line["anchor"]]
        assert {m["source"] for m in line["mined"]} <= {"bm25", "dense", "random"}
    table = pd.read_parquet(run.folder / "scores" / "mined" / "negatives.parquet")
    assert len(table) == run.metrics["negatives"] and (run.folder / "scores.png").stat().st_size > 5000
    assert not list(run.folder.rglob("vectors.f32"))
    assert mine(config).metrics == run.metrics


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data=text", "data.path={pairs}", "data.columns.anchor=anchor", "source=bm25"], "no positives"),
        (["data=pairs", "data.path={pairs}", "source=dense"], "give one of model"),
        (["data=pairs", "data.path={pairs}", "source=bm25", "corpus=nowhere.txt"], "nowhere.txt"),
        (["data=pairs", "data.path={pairs}", "source=bm25", "pick=best"], "pick=best"),
    ],
)
def test_what_does_not_fit_is_said(pairs, tmp_path, arguments, said):
    with pytest.raises(UsageError, match=said):
        mine(
            composed(
                *(a.format(pairs=pairs) for a in arguments),
                "threads=1",
                f"outputs={tmp_path}",
                "name=mined",
                root="mine",
            )
        )


@pytest.mark.slow
def test_mined_negatives_train_by_the_command_line(pairs, tmp_path):
    done = command("mine", "data=pairs", f"data.path={pairs}", "source=bm25", f"outputs={tmp_path}", cwd=tmp_path)
    file = next(tmp_path.glob("mined-pairs/*/negatives.jsonl"))
    assert str(file) in done.stdout
    small = ["encoder=tiny", "data.batch_size=8", "trainer.max_steps=2", f"outputs={tmp_path}/out"]
    command("train", "loss=infonce", "data=triplets", f"data.path={file}", *small, cwd=tmp_path)
    mined = ["preparation=mined", f"preparation.mined.path={file}", "data=pairs", f"data.path={pairs}"]
    assert "96 rows read" in command("train", "loss=triplet", *mined, *small, cwd=tmp_path).stdout


def test_mined_negatives_join_the_rows_of_their_anchor(tmp_path):
    file = tmp_path / "negatives.jsonl"
    lines = [{"anchor": "a", "negative": ["n1", "n2"]}, {"anchor": "other", "negative": []}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = Rows(anchor=["a", "b", "a"], positive=["p", "q", "r"], negative=[["own"], [], []])
    made, origins = Mined(str(file))(rows, np.random.default_rng(0))
    assert made.negative == [["own", "n1", "n2"], [], ["n1", "n2"]] and list(origins) == [0, 1, 2]
    assert Mined(str(file), count=1)(Rows(anchor=["a"]), np.random.default_rng(0))[0].negative == [["n1"]]
    more = [*lines, {"anchor": "a", "negative": ["n2", "n3"]}]
    file.write_text("".join(json.dumps(line) + "\n" for line in more))
    assert Mined(str(file))(Rows(anchor=["a"]), np.random.default_rng(0))[0].negative == [["n1", "n2", "n3"]]
    file.write_text(json.dumps({"anchor": "a", "negative": ["own", "m1", "m2"], "mined": [{}, {}]}) + "\n")
    made, _ = Mined(str(file), count=1)(rows, np.random.default_rng(0))
    assert made.negative == [["own", "m1"], [], ["m1"]]  # the file's own negatives are the row's already
    with pytest.raises(UsageError, match="none of the anchors"):
        Mined(str(file))(Rows(anchor=["z"]), np.random.default_rng(0))
    file.write_text('{"anchor": "a", "negative": "n1"}\n')
    with pytest.raises(UsageError, match="row 1"):
        Mined(str(file))(rows, np.random.default_rng(0))
