"""Two models query by query: the tests of significance against scipy, what is refused, and the sets that are kept."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from conftest import WORDS, composed
from made_runs import METRIC, PROTOCOL, made
from making import model
from unitsphere.cli import compare as verb
from unitsphere.cli.evaluate import evaluate
from unitsphere.errors import UsageError
from unitsphere.evaluation.bad_cases import BadCases
from unitsphere.evaluation.retrieval import Retrieval, places
from unitsphere.formats import beir
from unitsphere.report.comparison import compare
from unitsphere.report.records import Record, read
from unitsphere.report.significance import difference, holm, randomisation
from unitsphere.types import RetrievalSet

NAME = f"test/{METRIC}"


def record(folder, values=None, pairs=None):
    """A record with the scores by query, or by pair, that are given."""
    (folder / "scores" / "test").mkdir(parents=True)
    metrics = {}
    if values is not None:
        queries = [f"q{i}" for i in range(len(values))]
        pd.DataFrame({"query": queries, "mrr@10": values}).to_parquet(folder / "scores/test/docs.parquet")
        metrics[NAME] = float(np.mean(values))
    if pairs is not None:
        prediction, gold = pairs
        texts = {side: [f"{side} {i}" for i in range(len(gold))] for side in ("sentence1", "sentence2")}
        table = pd.DataFrame(texts | {"score": gold, "prediction": prediction})
        table.to_parquet(folder / "scores/test/sts-stsb.parquet")
        metrics["test/sts/stsb"] = float(stats.spearmanr(prediction, gold).statistic)
    return Record(folder, {"status": "done"}, {}, metrics)


def test_the_randomisation_test_of_a_mean_is_scipys(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.choice([0, 0.2, 0.5, 1.0], 14)
    y = np.clip(x + rng.choice([0, 0, 0.3], 14), 0, 1)
    exact = stats.permutation_test((y - x,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    found = randomisation(record(tmp_path / "a", x), record(tmp_path / "b", y), NAME, NAME)
    assert found == pytest.approx(exact, abs=0.015) and 0.01 < exact < 0.9


def test_the_randomisation_test_of_spearman_is_scipys(tmp_path):
    rng = np.random.default_rng(1)
    gold = rng.uniform(0, 5, 13)
    x, y = gold + rng.normal(0, 3, 13), gold + rng.normal(0, 1, 13)
    ranked = stats.rankdata(gold)

    def gap(a, b):
        return np.corrcoef(b, ranked)[0, 1] - np.corrcoef(a, ranked)[0, 1]

    ranks = stats.rankdata(x), stats.rankdata(y)
    exact = stats.permutation_test(ranks, gap, permutation_type="samples", vectorized=False, n_resamples=np.inf).pvalue
    a, b = record(tmp_path / "a", pairs=(x, gold)), record(tmp_path / "b", pairs=(y, gold))
    assert randomisation(a, b, "test/sts/stsb", "test/sts/stsb") == pytest.approx(exact, abs=0.015)
    assert 0.01 < exact < 0.9


def test_the_bootstrap_is_scipys(tmp_path):
    rng = np.random.default_rng(2)
    x, y = rng.uniform(size=(2, 150))
    expected = stats.bootstrap((y - x,), np.mean, method="percentile", rng=0).confidence_interval
    found = difference([record(tmp_path / "a", x)], [record(tmp_path / "b", y)], NAME, NAME)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.006)


@pytest.mark.parametrize("kind", ["mean", "spearman"])
def test_both_tests_reject_what_is_equal_as_often_as_they_say(tmp_path, kind):
    """200 data sets without a difference: about one in twenty has p < 0.05."""
    found = []
    for trial in range(200):
        rng = np.random.default_rng(trial)
        shared = rng.uniform(0, 5, 40)
        noisy = [shared + rng.normal(0, 2, 40) for _ in "ab"]
        a, b = (
            record(tmp_path / f"{trial}{side}", **({"values": x} if kind == "mean" else {"pairs": (x, shared)}))
            for side, x in zip("ab", noisy, strict=True)
        )
        metric = NAME if kind == "mean" else "test/sts/stsb"
        found.append((randomisation(a, b, metric, metric), difference([a], [b], metric, metric).p_items))
    share = (np.array(found) < 0.05).mean(axis=0)
    assert 0.02 <= share[0] <= 0.09 and 0.02 <= share[1] <= 0.09


def test_holm_is_the_step_down():
    p = [0.01, 0.04, 0.03, 0.005]
    ordered = sorted(p)
    expected = {v: max(min(1, w * (len(p) - i)) for i, w in enumerate(ordered[: n + 1])) for n, v in enumerate(ordered)}
    assert holm(p) == pytest.approx([expected[v] for v in p]) and holm([0.7, 0.6]) == [1.0, 1.0] and holm([]) == []


def test_a_planted_difference_is_found_and_counted(tmp_path):
    a, b = read(made(tmp_path, "x", level=0.4, noise=4.0)), read(made(tmp_path, "yy", level=0.5, noise=1.0))
    lines = {line.metric: line for line in compare(a, b).lines}
    assert set(lines) == {METRIC, "sts/sts12", "sts/stsb", "sts/avg"}
    assert all(line.adjusted < 0.05 and line.difference.value > 0 and not line.worse for line in lines.values())
    x, y = (pd.read_parquet(r.folder / "scores/test/docs.parquet")["mrr@10"] for r in (a, b))
    assert lines[METRIC].counts == ((y > x).sum(), (y == x).sum(), (y < x).sum())
    assert sum(lines["sts/avg"].counts) == 800
    assert all(line.worse for line in compare(b, a).lines)
    assert lines[METRIC].adjusted >= lines[METRIC].p


def test_pairs_are_won_by_the_nearer_rank(tmp_path):
    gold = [1.0, 2.0, 3.0, 4.0]
    a = record(tmp_path / "a", pairs=([4.0, 3.0, 2.0, 1.0], gold))
    b = record(tmp_path / "b", pairs=([1.0, 3.0, 4.0, 2.0], gold))
    (line,) = compare(a, b).lines
    assert line.gains.tolist() == [3, 0, 0, 1] and line.counts == (2, 2, 0)


def test_a_model_is_equal_to_itself(tmp_path):
    a = read(made(tmp_path))
    found = compare(a, a)
    assert "A and B are equal on every item" in found.notes
    assert all((line.p, line.difference.value, line.difference.low) == (1.0, 0.0, 0.0) for line in found.lines)


def test_a_run_is_compared_with_its_own_start(tmp_path):
    run = read(made(tmp_path, level=0.5))
    (line,) = compare(run, run, ("before", "test")).lines
    assert line.difference.value == pytest.approx(0.2, abs=0.05) and line.adjusted < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.iloc[:250], "not scored on the same items of docs: 300 and 250 .*q250 only in A"),
        (lambda t: t.assign(query="x" + t["query"]), "300 and 300 .*q0 only in A, xq0 only in B"),
        (lambda t: t.iloc[::-1], "300 and 300 in the order of their scores"),
        (lambda t: t.drop(columns="mrr@10"), r"b/scores/test has no scores by query or pair of docs/mrr@10"),
    ],
)
def test_other_items_are_refused(tmp_path, change, message):
    a, b = (read(made(tmp_path / side)) for side in "ab")
    b.folder.rename(tmp_path / "b" / "b")
    b = read(tmp_path / "b" / "b")
    file = b.folder / "scores/test/docs.parquet"
    change(pd.read_parquet(file)).to_parquet(file)
    with pytest.raises(UsageError, match=message):
        compare(a, b, metrics=["docs/*"])


def test_other_documents_are_refused_unless_that_is_allowed(tmp_path):
    other = {"docs": PROTOCOL["docs"] | {"sha256": "b"}}
    a = read(made(tmp_path, "x", protocol={"docs": PROTOCOL["docs"] | {"sha256": "a"}}))
    b = read(made(tmp_path, "y", protocol=other))
    with pytest.raises(UsageError, match="did not measure docs in the same way: sha256 is a and b"):
        compare(a, b)
    assert compare(a, b, mix=True).lines and compare(a, b, metrics=["sts/*"]).lines


def test_what_is_missing_is_named(tmp_path):
    a, b = read(made(tmp_path, "x")), read(made(tmp_path, "y"))
    with pytest.raises(UsageError, match=r"has no scores of dev2?; stage=test or before"):
        compare(Record(a.folder, a.info, a.settings, {NAME: 0.5, "before/x/y": 0.1}), b, ("dev", "dev"))
    with pytest.raises(UsageError, match=r"no metric nothing in common: .* has docs/mrr@10, geometry/uniformity"):
        compare(a, b, metrics=["nothing"])
    with pytest.raises(UsageError, match="neither has scores by query or pair of geometry/uniformity"):
        compare(a, b, metrics=["geometry/*"])
    assert "not tested, having no scores by query or pair: geometry/uniformity" in compare(a, b).notes


def test_a_retrieval_set_of_other_texts_is_another_set():
    def stamp(text):
        one = RetrievalSet("s", {"d": text, "e": "other"}, {"q": "what"}, {"q": {"d": 1}})
        return Retrieval("test", own=one)(embed).protocol["s"]

    def embed(texts, role, max_length=None, prompt=None):
        return np.ones((len(texts), 3), dtype=np.float32)

    assert stamp("one") == stamp("one") and stamp("one")["sha256"] != stamp("two")["sha256"]


def test_every_query_says_where_it_found_what():
    run = {"q1": {"a": 0.9, "b": 0.5}, "q2": {"c": 0.9, "a": 0.8, "b": 0.7}, "q3": {"a": 0.5, "b": 0.5}}
    found = places(run, {"q1": {"a": 1, "b": 1}, "q2": {"b": 1, "c": 0}, "q3": {"d": 2}})
    assert found["found"].isna().tolist() == [True, False, False] and found["found"].tolist()[1:] == ["c", "b"]
    assert found["rank"].tolist()[:2] == [1, 3] and np.isnan(found["rank"][2])


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    """Two untrained models on the same 60 queries and 60 pairs."""
    folder = tmp_path_factory.mktemp("evaluations")
    rng = np.random.default_rng(0)
    said = [" ".join(rng.choice(WORDS, 5)) + f" {i}" for i in range(60)]
    corpus = {f"d{i}": f"about {text}" for i, text in enumerate(said)}
    queries = {f"q{i}": " ".join(text.split()[:3]) for i, text in enumerate(said)}
    beir.write(
        folder / "words", {"test": RetrievalSet("words", corpus, queries, {f"q{i}": {f"d{i}": 1} for i in range(60)})}
    )
    pairs = [{"sentence1": s, "sentence2": said[i - 1], "score": float(i % 5)} for i, s in enumerate(said)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    runs = []
    for seed in (1, 2):
        config = composed(
            "encoder=tiny", f"encoder.seed={seed}", "eval=[retrieval,sts]", f"eval.retrieval.path={folder}/words",
            f"eval.sts.path={folder}", "threads=1", f"outputs={folder}", root="eval",
        )  # fmt: skip
        config.eval.sts.tests = {"words": "pairs.jsonl"}
        runs.append(evaluate(config, folder / f"model{seed}").folder)
    return folder, *map(str, runs)


def test_the_worst_are_shown_and_kept(evaluations, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder, a, b = evaluations
    kept = tmp_path / "kept"
    verb.main([a, b, "worst=3", f"save={kept}", f"out={tmp_path}/out/t"])
    out = capsys.readouterr().out
    assert "words/mrr@10, on which B loses most:" in out and "looks for, rank" in out and "score " in out
    whole = beir.read(str(folder / "words"), "test")
    bad = beir.read(str(kept / "words"), "test")
    scored = [pd.read_parquet(f"{of}/scores/test/words.parquet").set_index("query") for of in (a, b)]
    lost = (scored[1]["mrr@10"] - scored[0]["mrr@10"]).sort_values(kind="stable")
    assert set(bad.queries) <= set(lost[lost <= sorted(lost)[2]].index) and len(bad.queries) == 3
    assert bad.corpus == whole.corpus and all(bad.qrels[q] == whole.qrels[q] for q in bad.qrels)
    assert {f.name for f in kept.iterdir()} == {"words", "sts-words.jsonl"}
    for query in bad.queries:
        assert whole.queries[query] in out and query in out
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"t.md", "t.csv"}
    table = pd.read_csv(tmp_path / "out" / "t.csv").set_index("metric")
    assert table.loc["words/mrr@10", ["won", "tied", "lost"]].sum() == 60
    assert table.loc["words/mrr@10", "difference"] == pytest.approx(lost.mean())
    with pytest.raises(UsageError, match="is there already"):
        verb.main([a, b, f"save={kept}"])


def test_what_was_kept_is_scored_beside_the_whole(evaluations, tmp_path):
    folder, a, b = evaluations
    verb.main([a, b, f"save={tmp_path}/kept", "worst=4"])
    config = composed(
        "encoder=tiny", "encoder.seed=2", "eval=[retrieval,bad_cases]", f"eval.retrieval.path={folder}/words",
        f"eval.bad_cases.path={tmp_path}/kept", "threads=1", f"outputs={tmp_path}", root="eval",
    )  # fmt: skip
    run = evaluate(config, tmp_path / "again")
    items = pd.read_parquet(f"{b}/scores/test/words.parquet").set_index("query")
    kept = pd.read_parquet(run.folder / "scores/test/words_bad.parquet").set_index("query")
    assert len(kept) == 4
    for measure in ("mrr@10", "ndcg@10", "recall@1"):
        assert run.metrics[f"test/words_bad/{measure}"] == pytest.approx(items.loc[kept.index, measure].mean())
    assert {"test/words/mrr@10", "test/sts_bad/words"} <= set(run.metrics)
    assert set(run.info["protocol"]) == {"words", "words_bad", "sts_bad"} and run.info["primary"] == "words/mrr@10"
    assert (run.folder / "scores/test/words_bad-worst.parquet").exists()
    lines = compare(read(run.folder), read(run.folder)).lines
    assert {"words_bad/mrr@10", "sts_bad/words"} <= {line.metric for line in lines}
    alone = BadCases("test", path=f"{tmp_path}/kept", ignore_identical_ids=True)(model().embed)
    assert alone.protocol["words_bad"]["ignore_identical_ids"] is True


def test_bad_cases_are_not_for_choosing(evaluations, tmp_path):
    _, a, b = evaluations
    verb.main([a, b, f"save={tmp_path}/kept", "metric=words/mrr@10"])
    assert BadCases("dev", path=f"{tmp_path}/kept")(None).metrics == {}
    with pytest.raises(UsageError, match="is no folder; unitsphere compare"):
        BadCases("test", path=f"{tmp_path}/none")
    with pytest.raises(UsageError, match="neither BEIR folders nor"):
        BadCases("test", path=str(tmp_path))


def test_a_check_that_says_no(tmp_path, capsys):
    a, b = str(made(tmp_path, "x", level=0.5)), str(made(tmp_path, "yy", level=0.4))
    with pytest.raises(SystemExit) as exited:
        verb.main([a, b, "fail_if_worse=true"])
    assert exited.value.code == 1 and f"significantly worse: {METRIC}" in capsys.readouterr().out
    verb.main([b, a, "fail_if_worse=true"])
    verb.main([a, b])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["A"], "two models are compared, and 1 were named"),
        (["A", "B", "colour=red"], "'colour=red' is not understood; metric=…, stage=…"),
        (["A", "B", "stage=tset"], "stage=tset: one of test, before, last, dev would fit"),
        (["A", "B", "worst=many"], "worst=many: a number of queries would fit"),
        (["A", "B", "mix=yes"], "mix=yes: true or false would fit"),
        (["A", "."], "holds 2 runs; name one of them, or use unitsphere table"),
        (["A", "nowhere"], "no such folder"),
    ],
)
def test_bad_usage_is_one_message(tmp_path, monkeypatch, arguments, message):
    made(tmp_path, "x").rename(tmp_path / "A")
    made(tmp_path, "y").rename(tmp_path / "B")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        verb.main(arguments)


def test_torch_is_not_imported(tmp_path):
    a, b = made(tmp_path, "x"), made(tmp_path, "y")
    code = (
        f"import sys; sys.argv = ['unitsphere', 'compare', {str(a)!r}, {str(b)!r}]; "
        "from unitsphere.cli.main import main; main(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def rows(**columns):
    return pd.DataFrame({name: [values] * 3 if isinstance(values, str) else values for name, values in columns.items()})


@pytest.fixture
def others(evaluations, tmp_path):
    """The two evaluations with items of further kinds, on which the second is worse."""
    _, *before = evaluations
    made = []
    for number, of in enumerate(map(Path, before)):
        copy = tmp_path / f"of{number}"
        shutil.copytree(of, copy)
        right = [1.0, 1.0, 1.0 - number]
        searched = pd.read_parquet(copy / "scores/test/words.parquet")
        items = {
            "words-bm25": searched.assign(**{"mrr@10": searched["mrr@10"] * (1 - number)}),
            "words_typos": searched.assign(**{"mrr@10": searched["mrr@10"] * (1 - number)}),
            "mrpc": rows(sentence1=["s0", "s1", "s2"], sentence2="other", label=[0, 1, 1], query=[0, 1, 2],
                         prediction=[0.1, 0.2, 0.3], accuracy=right),
            "probe": rows(query=["t0", "t1", "a labelled text"], gold="l1", predicted=["l1", "l1", f"l{number}"],
                          accuracy=right),
            "bitext-en-zh": rows(query=["u0", "u1", "a sentence"], **{"mrr@10": right}),
        }  # fmt: skip
        metrics = json.loads((copy / "metrics.json").read_text())
        for task, table in items.items():
            table.to_parquet(copy / "scores/test" / f"{task}.parquet")
            measure = "accuracy" if "accuracy" in table else "mrr@10"
            metrics[f"test/{task}/{measure}"] = table[measure].mean()
        (copy / "metrics.json").write_text(json.dumps(metrics))
        made.append(str(copy))
    return made


def test_the_worst_of_every_kind_are_shown(others, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("unitsphere.training.run.build_evaluators", None)  # which may load models
    verb.main([*others, "worst=2", f"save={tmp_path}/kept"])
    out = capsys.readouterr().out
    assert "label 1, cosine 0.300 -> 0.300, accuracy 100.00 -> 0.00\n   s2\n   other" in out
    assert "gold l1, predicted l0 -> l1, accuracy 100.00 -> 0.00\n   a labelled text" in out
    assert "mrr@10 100.00 -> 0.00\n   a sentence" in out
    for task in ("words-bm25", "words_typos"):
        assert f"{task}/mrr@10, on which B loses most:" in out and len(beir.read(f"{tmp_path}/kept/{task}", "test").queries) == 2  # fmt: skip
    assert "not where" not in out
    kept = {file.name for file in (tmp_path / "kept").iterdir()}
    assert kept == {"words", "words-bm25", "words_typos", "sts-words.jsonl"}
    for task in ("mrpc", "probe", "bitext-en-zh"):
        assert f"note: {task} is not kept" in out


def test_instructions_are_not_lost(evaluations, tmp_path, monkeypatch, capsys):
    folder, a, b = evaluations
    of = beir.read(str(folder / "words"), "test")
    instructed = replace(of, instructions={("query", text): "find: " for text in of.queries.values()})
    monkeypatch.setattr(verb, "_sets", lambda *_: [instructed])
    verb.main([a, b, "worst=2", "metric=words/*"])
    assert "looks for, rank" in capsys.readouterr().out
    with pytest.raises(UsageError, match="the texts of words have instructions of their own, which"):
        verb.main([a, b, f"save={tmp_path}/kept", "metric=words/*"])
    assert not (tmp_path / "kept").exists()


def test_kept_pairs_of_two_tasks_stand_side_by_side(tmp_path):
    pair = json.dumps({"sentence1": "a", "sentence2": "b", "score": 1.0})
    for name in ("sts-words", "sts_typos-words"):
        (tmp_path / f"{name}.jsonl").write_text(f"{pair}\n{pair}\n")
    assert list(BadCases("test", path=str(tmp_path)).held()) == ["sts/words_bad", "sts/sts_typos-words_bad"]
