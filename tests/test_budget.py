"""A time for each evaluator: what is finished is reported as the part it is."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from unitsphere.errors import UsageError
from unitsphere.evaluation import cached
from unitsphere.evaluation.bad_cases import BadCases
from unitsphere.evaluation.bitext import Bitext
from unitsphere.evaluation.cached import CachedEmbed, OutOfTime
from unitsphere.evaluation.geometry import Geometry
from unitsphere.evaluation.pair_classification import PairClassification
from unitsphere.evaluation.retrieval import Retrieval
from unitsphere.evaluation.robustness import Robustness
from unitsphere.evaluation.score import joined, remarks, score, unfinished
from unitsphere.evaluation.sts import STS
from unitsphere.evaluation.truncation import Truncation
from unitsphere.formats import beir
from unitsphere.report.comparability import refuse_mixed_protocols
from unitsphere.training.selection import Selection
from unitsphere.types import Result, RetrievalSet


class Clock:
    """A second passes with each text that is embedded."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def embed(self, texts, role, max_length=None, prompt=None):
        self.now += len(texts)
        return np.stack([np.random.default_rng(list(f"{role} {t}".encode())).normal(size=8) for t in texts]).astype(
            "f4"
        )


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    monkeypatch.setattr(cached, "SLICE", 4)


def made(queries=40, documents=20, **more):
    return RetrievalSet(
        "made",
        {f"d{j}": f"document {j}" for j in range(documents)},
        {f"q{i}": f"query {i}" for i in range(queries)},
        {f"q{i}": {f"d{i % documents}": 1} for i in range(queries)},
        **more,
    )


def scored(evaluators, seconds):
    clock = Clock()
    return score(evaluators, clock.embed, seconds, clock)


def test_a_part_of_the_queries_is_reported_as_that():
    whole, part = scored([Retrieval("test", made())], None), scored([Retrieval("test", made())], 41)
    assert part.protocol["made"]["stopped"] == "24 of 40 queries" and part.protocol["made"]["queries"] == 24
    assert remarks(part, 41) == ["made: stopped after 41 s with 24 of 40 queries"] and remarks(whole, None) == []
    items, all_items = part.items["made"], whole.items["made"].set_index("query")
    assert len(items) == 24 and list(items["query"]) != [f"q{i}" for i in range(24)]  # not simply the first ones
    assert np.array_equal(items["mrr@10"], all_items.loc[items["query"], "mrr@10"])
    assert part.metrics["made/mrr@10"] == pytest.approx(items["mrr@10"].mean()) and part.primary == "made/mrr@10"


def test_a_time_that_is_enough_changes_nothing():
    evaluators = [Retrieval("test", made())]
    plenty, whole = scored(evaluators, 1000), scored(evaluators, None)
    assert plenty.metrics == whole.metrics and plenty.protocol == whole.protocol


def test_each_evaluator_has_the_time_and_known_texts_are_free():
    result = scored([Retrieval("test", made()), Geometry("test", made())], 61)
    assert "stopped" not in str(result.protocol) and "geometry/uniformity" in result.metrics


def test_nothing_finished_is_said():
    result = scored([Geometry("test", made()), Retrieval("test", made(4, 4))], 10)
    assert result.primary == "" and "made/mrr@10" in result.metrics
    assert remarks(result, 10) == ["geometry: stopped after 10 s with nothing finished"]
    assert scored([Retrieval("test", made())], 10).metrics == {}  # not even the documents


def test_queries_with_instructions_of_their_own():
    instructions = {("query", f"query {i}"): "find: " for i in range(0, 40, 2)}
    result = scored([Retrieval("test", made(instructions=instructions))], 40)
    done = result.protocol["made"]["queries"]
    assert 0 < done < 40 and len(result.items["made"]) == done


def test_tasks_that_are_finished_are_whole(tmp_path):
    for task in ("a", "b"):
        rows = [{"sentence1": f"{task}{i}", "sentence2": f"{task}x{i}", "score": i, "label": i % 2} for i in range(12)]
        (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {"a": "a.jsonl", "b": "b.jsonl"}
    columns = {name: name for name in ("sentence1", "sentence2", "label")}
    sts = STS("test", tasks, {"simcse": tasks}, {}, path=str(tmp_path))
    pairs = PairClassification("test", tasks, {}, columns, str(tmp_path))
    part, whole = scored([sts], 30), scored([sts], None)
    assert part.metrics == {"sts/a": whole.metrics["sts/a"]} and part.protocol["sts"]["stopped"] == "1 of 2 tasks"
    part, whole = scored([pairs], 30), scored([pairs], None)
    assert part.metrics == {name: value for name, value in whole.metrics.items() if name.startswith("a/")}
    assert remarks(part, 30) == ["pair_classification: stopped after 30 s with 1 of 2 tasks"]
    assert unfinished(part, part.primary) and unfinished(part, "a/ap") is None
    assert part.primary == whole.primary == "pair_classification/ap"


def test_noises_that_are_finished_are_whole():
    def louder(text, random):
        return text + "!"

    def shorter(text, random):
        return text[1:]

    robustness = Robustness("test", made(), Retrieval, {"louder": louder, "shorter": shorter}, ["mrr@10"])
    part, whole = scored([robustness], 110), scored([robustness], None)
    assert set(part.metrics) == {"made_louder/mrr@10", "made_louder/mrr@10_loss"} < set(whole.metrics)
    assert part.primary == whole.primary == "made_noisy/mrr@10" and unfinished(part, part.primary)
    assert part.protocol["robustness"]["stopped"] == "1 of 2 noises"
    assert all(whole.metrics[name] == value for name, value in part.metrics.items())


def test_what_was_done_comes_with_the_exception():
    clock = Clock()
    embed = CachedEmbed(clock.embed, 5, clock)
    with pytest.raises(OutOfTime) as stopped:
        embed([f"t{i}" for i in range(12)], "query")
    assert len(stopped.value.done) == 8 and clock.now == 8  # the slice in which the time ended is finished
    assert np.array_equal(embed(["t3", "t1"], "query"), np.stack([stopped.value.done[3], stopped.value.done[1]]))
    embed.start()
    assert embed(["t11"], "query").shape == (1, 8)


def test_a_table_refuses_a_part_beside_a_whole():
    def record(result):
        return SimpleNamespace(info={"protocol": dict(result.protocol)})

    records = [record(scored([Retrieval("test", made())], seconds)) for seconds in (None, 41)]
    with pytest.raises(UsageError, match="queries is 24 and 40"):
        refuse_mixed_protocols(records, ["test/made/mrr@10"])


class Looks:
    """What the selection asks of trainer and module; each look returns the next result."""

    global_step, loggers, is_global_zero, eval_seconds = 0, (), False, 9.0

    def __init__(self, *results):
        self.results, self.said = list(results), []
        self.score_dev = lambda: self.results.pop(0)
        self.print = self.said.append


def test_a_part_chooses_no_checkpoint(monkeypatch):
    monkeypatch.setattr("unitsphere.training.selection.whole", lambda embedder: {})
    whole = Result({"made/mrr@10": 0.2}, "made/mrr@10", {}, {"made": {}})
    part = Result({"made/mrr@10": 0.9}, "made/mrr@10", {}, {"made": {"stopped": "5 of 9 queries"}})
    nothing = Result({}, "", {}, {"retrieval": {"stopped": "nothing finished"}})
    looks, selection = Looks(whole, part, nothing), Selection()
    looks.embedder = None
    for looks.global_step in range(3):
        selection._look(looks, looks)
    assert selection.best_step == 0 and [look["step"] for look in selection.looks] == [0]
    assert "step 1: dev/made: stopped after 9 s with 5 of 9 queries" in looks.said
    assert sum("not a candidate" in line for line in looks.said) == 2
    other = Result({"made/mrr@10": 0.9}, "made/mrr@10", {}, {"made": {}})
    for first in (part, nothing, joined([nothing, other])):
        with pytest.raises(UsageError, match="eval_seconds=9 was not enough for dev"):
            Selection()._look(Looks(first), Looks(first))


@pytest.mark.parametrize("seconds", [0, -1])
def test_seconds_are_positive(seconds):
    with pytest.raises(UsageError, match="more than 0"):
        score([], Clock().embed, seconds)


def test_a_part_of_cut_vectors():
    def truncation(split, own):
        return Truncation(split, own, Retrieval, [4, 2], ["mrr@10"])

    part, whole = scored([truncation("test", made())], 41), scored([truncation("test", made())], None)
    stopped = {task: stamp.get("stopped") for task, stamp in part.protocol.items()}
    assert stopped == dict.fromkeys(("made_dim4", "made_dim2"), "24 of 40 queries")
    assert set(part.metrics) == set(whole.metrics) == {"made_dim4/mrr@10", "made_dim2/mrr@10"}
    assert whole.primary == "made_dim4/mrr@10" and unfinished(part, whole.primary) == "24 of 40 queries"


def test_a_part_of_bad_cases_is_what_it_is_without_them(tmp_path):
    """Of texts that are asked for twice a second cache asks once: its part is not the first of what was asked for."""
    of = made()
    queries = {query: f"query {i % 30}" for i, query in enumerate(of.queries)}
    beir.write(tmp_path / "made", {"test": replace(of, queries=queries)})
    bad = BadCases("test", path=str(tmp_path))
    alone, inside = scored([Retrieval("test", path=str(tmp_path / "made"))], 41), scored([bad], 41)
    assert inside.protocol["made_bad"] == alone.protocol["made"] and "stopped" in inside.protocol["made_bad"]
    assert inside.metrics == {name.replace("made", "made_bad"): value for name, value in alone.metrics.items()}
    assert unfinished(inside, inside.primary) == alone.protocol["made"]["stopped"]
    assert scored([bad], 10).protocol == {"retrieval_bad": {"stopped": "nothing finished"}}


def test_directions_that_are_finished_are_whole(tmp_path):
    (tmp_path / "a.tsv").write_text("".join(f"a{i}\tb{i}\n" for i in range(12)))
    (tmp_path / "c.tsv").write_text("".join(f"c{i}\td{i}\n" for i in range(12)))
    bitext = Bitext("test", {"en-de": "a.tsv", "en-fr": "c.tsv"}, {}, str(tmp_path))
    part, whole = scored([bitext], 30), scored([bitext], None)
    assert set(part.items) == {"bitext-en-de", "bitext-de-en"} < set(whole.items)
    assert all(whole.metrics[name] == value for name, value in part.metrics.items())
    assert part.protocol["bitext"]["stopped"] == "2 of 4 tasks" and part.primary == "bitext/accuracy"
    assert unfinished(part, part.primary) and unfinished(part, "bitext-en-de/mrr@10") is None
