"""What evaluators hold, looked for in training rows: by hand, and against a slow search through all rows."""

import json
from itertools import permutations

import pytest

from conftest import composed
from unitsphere.build import build, build_evaluators
from unitsphere.cli.train import start
from unitsphere.data.leakage import Leakage, told
from unitsphere.data.rows import Rows
from unitsphere.errors import UsageError
from unitsphere.evaluation.geometry import Geometry
from unitsphere.evaluation.retrieval import Retrieval
from unitsphere.evaluation.sts import STS
from unitsphere.evaluation.truncation import Truncation
from unitsphere.similar import Exact, Near, normalised
from unitsphere.training.run import train
from unitsphere.types import RetrievalSet


class Holds:
    """An evaluator that only holds."""

    def __init__(self, **sets):
        self.sets = sets

    def held(self):
        return self.sets


def look(rows, same=None, action="report", threshold=0.0, dev=(), **sets):
    leakage = Leakage(same or Exact(), threshold, action)
    kept, reports = leakage(rows, {"test": [Holds(**sets)], "dev": list(dev)})
    return kept, {report["set"]: report for report in reports}


PAIRS = Rows(
    anchor=["Who is it?", "where IS it", "劳动法是什么？", "same", "a"],
    positive=["it is me", "here", "一部法律", "same", "b"],
    negative=[["what is it"], ["where", "there"], [], ["c"], ["d", "c"]],
)


def test_a_query_is_found_as_an_anchor_or_positive_whatever_its_case_and_punctuation():
    queries = ["who is it", "劳动法 是什么", "Here!", "what is it", "nowhere"]
    _, found = look(PAIRS, queries=queries)
    report = found["queries"]
    assert (report["held"], report["found"], report["share"], report["apart"]) == (5, 2, 0.4, 0)
    assert report["examples"] == [
        {"held": ["who is it"], "row": 0, "training": ["Who is it?", "it is me"]},
        {"held": ["Here!"], "row": 1, "training": ["where IS it", "here"]},
    ]
    assert told(report) == "leakage: 2 of the 5 in test/queries (40.0%) are training rows"
    assert look(PAIRS, queries=["劳动法是什么"])[1]["queries"]["found"] == 1


def test_a_pair_is_found_only_where_one_row_has_both_sides():
    pairs = [
        ("it is me", "who is it"),  # one row, the other way round
        ("a", "c"),  # an anchor and its negative
        ("who is it", "here"),  # two rows
        ("same", "same"),  # a row that has it twice
        ("a", "a"),  # a row that has it once
        ("who is it", "nobody"),
    ]
    _, found = look(PAIRS, sts=pairs)
    assert found["sts"]["found"] == 3 and found["sts"]["apart"] == 2
    assert [example["row"] for example in found["sts"]["examples"]] == [0, 4, 3]
    assert told(found["sts"]).endswith("(50.0%) are training rows; the texts of 2 more are in training, but apart")
    texts = Rows(["who is it", "it is me", "a"])
    _, alone = look(texts, sts=pairs)
    assert alone["sts"]["found"] == 0 and alone["sts"]["apart"] == 2


def test_against_a_slow_search():
    words = ["red", "Red!", "blue", "green", "GREEN", "old", "new"]
    rows = Rows(
        [words[i % 7] for i in range(30)],
        [words[i * 3 % 5] for i in range(30)],
        [[words[i * 2 % 7]] for i in range(30)],
    )
    items = [(a, b) for a in words for b in words] + words
    _, found = look(rows, all=items)

    def leaks(item):
        item = (item,) if isinstance(item, str) else item
        for anchor, positive, negatives in zip(rows.anchor, rows.positive, rows.negative, strict=True):
            texts = [anchor, positive] if len(item) == 1 else [anchor, positive, *negatives]
            for chosen in permutations(map(normalised, texts), len(item)):
                if chosen == tuple(map(normalised, item)):
                    return True
        return False

    assert found["all"]["held"] == len(items)
    assert found["all"]["found"] == sum(map(leaks, items)) > 10


def test_near_finds_what_exact_does_not():
    said = "the employer must pay compensation when the contract is not renewed"
    rows = Rows([said + " today", "something else entirely, of another kind"])
    assert look(rows, q=[said])[1]["q"]["found"] == 0
    assert look(rows, Near(0.8), q=[said])[1]["q"]["found"] == 1
    zh = "劳动合同期满后用人单位不再续签的应当支付经济补偿吗"
    assert look(Rows([zh.replace("吗", "么？")]), Near(0.8, 2), q=[zh])[1]["q"]["found"] == 1


@pytest.mark.parametrize("same", [Exact(), Near()])
def test_nothing_held_and_nothing_to_find(same):
    kept, found = look(PAIRS, same, none=[])
    assert kept is PAIRS and found["none"]["found"] == found["none"]["share"] == 0
    assert Leakage(same)(PAIRS, {"test": []}) == (PAIRS, [])


class Read(str):
    """A text that is counted as long as it is in memory."""

    alive = most = 0

    def __new__(cls, text):
        cls.alive += 1
        cls.most = max(cls.most, cls.alive)
        return super().__new__(cls, text)

    def __del__(self):
        Read.alive -= 1


class Stream:
    """A column whose texts are made as they are read."""

    read = 0

    def __len__(self):
        return 400

    def __getitem__(self, row):
        Stream.read += 1
        return Read(f"Text {row}!")

    def __iter__(self):
        return (self[row] for row in range(400))


def test_rows_on_disk_are_not_gathered_in_memory():
    rows = Rows(Stream(), Stream())
    assert look(rows, nothing=[])[1]["nothing"]["found"] == 0 and Stream.read == 0
    assert look(rows, q=["text 7", "text 8", "text 400"])[1]["q"]["found"] == 2 and 0 < Read.most < 20


def test_each_match_is_named_once():
    for same in (Exact(), Near()):
        assert same.matches(["who is it"], iter(["Who is it", "else", "Who is it", "WHO is it"])) == {
            "who is it": ["Who is it", "WHO is it"]
        }


def test_removing_takes_what_dev_holds_too_and_never_all():
    kept, found = look(PAIRS, action="remove", dev=[Holds(d=["a"])], q=["who is it"])
    assert kept.anchor == PAIRS.anchor[1:4] and kept.negative == PAIRS.negative[1:4]
    assert found["q"]["found"] == found["d"]["found"] == 1
    assert look(kept, q=["who is it"], d=["a"])[1]["q"]["found"] == 0
    assert look(PAIRS, action="remove", q=["nowhere"])[0] is PAIRS
    with pytest.raises(UsageError, match="leaves none of 1 training rows"):
        look(Rows(["x"]), action="remove", q=["x"])


def test_the_run_stops_above_the_threshold_on_test_only():
    queries = ["who is it", *(f"q{i}" for i in range(9))]
    for threshold, action, stops in ((0.05, "stop", True), (0.1, "stop", False), (0.05, "report", False)):
        leakage = Leakage(Exact(), threshold, action)
        reports = leakage(PAIRS, {"test": [Holds(q=queries)], "dev": [Holds(d=["a"])]})[1]
        if not stops:
            leakage.check(reports)
            continue
        with pytest.raises(UsageError) as stopped:
            leakage.check(reports)
        for part in ("1 of the 10 in test/q", "'who is it' is training row 0: 'Who is it?' | 'it is me'",
                     "leakage.action=remove", "leakage.action=report", "leakage.threshold=0.05"):  # fmt: skip
            assert part in str(stopped.value)
    with pytest.raises(UsageError, match="stop, remove or report"):
        Leakage(Exact(), action="ignore")


def test_what_each_evaluator_holds(tmp_path):
    own = RetrievalSet("mine", {"d1": "document"}, {"q1": "one", "q2": "two"}, {"q1": {"d1": 1}, "q2": {"d1": 1}})
    retrieval, geometry = Retrieval("test", own), Geometry("test", own)
    assert retrieval.held() == geometry.held() == {"mine": ["one", "two"]}
    assert Truncation("test", own, Retrieval, [2]).held() == retrieval.held()
    rows = [{"sentence1": "a", "sentence2": "b", "score": 1}, {"sentence1": "c", "sentence2": "d", "score": 2}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sts = STS("test", {"x": "x.jsonl"}, {"simcse": {}}, {}, path=str(tmp_path))
    assert sts.held() == {"sts/x": [("a", "b"), ("c", "d")]}


@pytest.fixture
def leaking(tmp_path):
    """40 pairs of which 2 of 5 test queries are training anchors, spelt a little otherwise."""
    rows = [{"anchor": f"query number {i}", "positive": f"document of {i}"} for i in range(40)]
    asked = [{"anchor": f"Query, number {i}!", "positive": f"document of {i}"} for i in (3, 4, 100, 101, 102)]
    for name, some in (("train", rows), ("test", asked), ("dev", asked[2:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return [
        "encoder=tiny", "loss=infonce", "data=pairs", f"data.path={tmp_path}/train.jsonl",
        f"data.test_path={tmp_path}/test.jsonl", f"data.dev_path={tmp_path}/dev.jsonl", "data.batch_size=8",
        "trainer.max_steps=1", "trainer.accelerator=cpu", "eval=retrieval", "select=last", f"outputs={tmp_path}/out",
    ]  # fmt: skip


def test_a_leaking_run_stops_before_a_model_is_loaded_and_says_why(leaking, monkeypatch, capsys):
    monkeypatch.setattr("unitsphere.training.run.build_embedder", lambda *_: pytest.fail("a model was loaded"))
    run = start(composed(*leaking), [], {})
    with pytest.raises(UsageError, match=r"2 of the 5 in test/pairs \(40.0%\) are training rows, which is more than"):
        train(run.config, run)
    assert run.info["status"] == "failed" and run.info["leakage"][0]["found"] == 2
    assert "leakage: 2 of the 5 in test/pairs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "rows"),
    [(["leakage.action=report"], None), (["leakage.action=remove"], 38), (["leakage=none"], None)],
)
def test_a_leaking_run_that_is_allowed(leaking, options, rows):
    run = start(composed(*leaking, *options), [], {})
    train(run.config, run)
    info = run.info
    assert info["status"] == "done" and info["data"]["train"]["rows"] == 40
    assert info["data"].get("prepared", {}).get("rows") == rows
    assert ("leakage" in info) == (options != ["leakage=none"])


def test_training_on_stsb_is_stopped_by_the_seven_tasks(shared, monkeypatch):
    """Most pairs of STS-B's training set are those of STS12-16."""
    monkeypatch.setenv("UNITSPHERE_DATA", str(shared))
    config = composed("data=scored", f"data.path={shared}/stsb-en/train.jsonl", "eval=sts")
    leakage = build(config.leakage)
    evaluators = {"test": build_evaluators(config.eval, "test", None)}
    rows, reports = leakage(build(config.data).splits.train, evaluators)
    found = {report["set"]: report for report in reports}
    assert all(found[f"sts/sts{year}"]["share"] > 0.15 for year in range(12, 17))
    assert all(found[f"sts/{task}"]["share"] < leakage.threshold for task in ("stsb", "sickr"))
    with pytest.raises(UsageError, match="in test/sts/sts12"):
        leakage.check(reports)
    config.leakage.action = "remove"
    clean = build(config.leakage)(rows, evaluators)[0]
    assert len(clean) < len(rows) and not any(r["found"] for r in leakage(clean, evaluators)[1])


@pytest.mark.parametrize("name", ["scifact", "stard-law-zh"])
def test_what_a_retrieval_set_brings_itself_does_not_stop_a_run(shared, name):
    config = composed("data=beir", f"data.path={shared}/{name}", "eval=retrieval")
    data, leakage = build(config.data), build(config.leakage)
    test = build_evaluators(config.eval, "test", data.splits.test)
    leakage.check(leakage(data.splits.train, {"test": test})[1])
