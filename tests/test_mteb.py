"""mteb's tasks on local folders: the same numbers as our own evaluators, sklearn, scipy and sentence-transformers give."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from conftest import WORDS, composed
from unitsphere import artefact
from unitsphere.build import build
from unitsphere.errors import UsageError
from unitsphere.evaluation import mteb as evaluator
from unitsphere.evaluation.mteb import MTEB
from unitsphere.evaluation.retrieval import Retrieval, unit
from unitsphere.evaluation.score import score, unfinished
from unitsphere.report.comparability import refuse_mixed_protocols
from unitsphere.training.run import build_embedder
from unitsphere.types import Result

mteb = pytest.importorskip("mteb", reason="the extra `mteb`")
AT = {"recall@1": "recall_at_1", "recall@10": "recall_at_10", "recall@100": "recall_at_100", "ndcg@10": "ndcg_at_10",
      "map@100": "map_at_100", "mrr@10": "mrr_at_10"}  # fmt: skip


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def some(rng, n=3):
    return " ".join(rng.choice(WORDS, n))


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """One small data set of each type."""
    folder, rng = tmp_path_factory.mktemp("layouts"), np.random.default_rng(0)
    documents = [{"_id": f"d{i}", "title": some(rng, 1), "text": some(rng, 4)} for i in range(140)]
    documents += [{**documents[i], "_id": f"e{i}"} for i in range(20)]  # equal texts: tied scores
    write(folder / "docs" / "corpus.jsonl", documents)
    write(folder / "docs" / "queries.jsonl", [{"_id": f"q{i}", "text": some(rng, 2)} for i in range(25)])
    (folder / "docs" / "qrels").mkdir()
    grades = "".join(f"q{i}\t{d}\t{g}\n" for i in range(25) for d, g in ((f"d{i}", 2), (f"e{i % 20}", 1), ("d99", 0)))
    (folder / "docs" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + grades)
    pairs = [{"sentence1": some(rng), "sentence2": some(rng)} for _ in range(60)]
    write(folder / "sts" / "test.jsonl", [p | {"score": float(rng.uniform(0, 5))} for p in pairs])
    write(folder / "sts" / "dev.jsonl", [p | {"score": float(rng.uniform(0, 5))} for p in pairs[:20]])
    write(folder / "pairs" / "test.jsonl", [p | {"labels": int(rng.integers(2))} for p in pairs])
    write(
        folder / "bitext" / "test.jsonl",
        [{"sentence1": f"{s} {i}", "sentence2": f"{i} {s}"} for i, s in enumerate(WORDS)],
    )
    for split, n in (("train", 80), ("test", 40)):
        rows = [{"text": some(rng), "label": ["蓝", "red"][int(rng.integers(2))]} for _ in range(n)]
        write(folder / "topics" / f"{split}.jsonl", rows)
    write(folder / "groups" / "test.jsonl", [{"sentences": some(rng), "labels": str(i % 3)} for i in range(40)])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder of ours, with prompts, which sentence-transformers reads too."""
    prompts = ["embedder.prompts.query='ask: '", "embedder.prompts.document='see: '", "+embedder.prompts.STS='like: '"]
    embedder = build_embedder(composed("encoder=tiny", *prompts)).eval()
    folder = tmp_path_factory.mktemp("saved") / "model"
    artefact.save(embedder, folder)
    return folder


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / name / "test.jsonl").read_text(encoding="utf-8").splitlines()]


def cosines(embed, rows):
    a, b = (unit(embed([r[side] for r in rows], "document", None, "")) for side in ("sentence1", "sentence2"))
    return a @ b.T


def test_mtebs_numbers_are_ours(layouts, embedder):
    ours = Retrieval("test", path=str(layouts / "docs"))(embedder.embed).metrics
    found = MTEB("test", path=str(layouts), measures=[*AT.values(), "accuracy"])(embedder.embed)
    for own, theirs in AT.items():
        kept = found.metrics[f"mteb-docs/{theirs}"]
        assert kept == pytest.approx(ours[f"docs/{own}"], abs=1e-4), own
    rows = rows_of(layouts, "sts")
    expected = spearmanr(np.diag(cosines(embedder.embed, rows)), [r["score"] for r in rows]).statistic
    assert found.metrics["mteb/sts"] == pytest.approx(expected, abs=1e-6)
    rows = rows_of(layouts, "pairs")
    ap = average_precision_score([r["labels"] for r in rows], np.diag(cosines(embedder.embed, rows)))
    cosine_ap = found.items["mteb"].query("task == 'pairs' and measure == 'cosine_ap'")["value"].item()
    assert cosine_ap == pytest.approx(ap, abs=1e-6)
    right = cosines(embedder.embed, rows_of(layouts, "bitext")).argmax(axis=1) == np.arange(len(WORDS))
    assert found.metrics["mteb-bitext/accuracy"] == pytest.approx(right.mean())


def test_means_are_over_tasks_and_over_types(layouts, embedder):
    found = MTEB("test", path=str(layouts))(embedder.embed)
    main = {name: value for name, value in found.metrics.items() if not name.startswith("mteb/mean")}
    assert set(main) == {f"mteb/{name}" for name in ("docs", "sts", "pairs", "bitext", "topics", "groups")}
    assert found.primary == "mteb/mean_task" == next(iter(found.metrics))
    assert found.metrics["mteb/mean_task"] == pytest.approx(np.mean(list(main.values())))
    types = {"a": "STS", "b": "STS", "c": "Retrieval"}
    means = evaluator._metrics({"a": 0.2, "b": 0.4, "c": 0.9}, types, found.items["mteb"], [])
    assert means["mteb/mean_task"] == pytest.approx(0.5) and means["mteb/mean_task_type"] == pytest.approx(0.6)
    stamp = found.protocol["mteb"]
    assert stamp["version"] == mteb.__version__ and len(stamp["tasks"]["docs"]["revision"]) == 64
    assert found.metrics == MTEB("test", path=str(layouts))(embedder.embed).metrics


def test_a_folder_of_ours_scores_as_sentence_transformers_does(layouts, model):
    from sentence_transformers import SentenceTransformer

    from unitsphere.evaluation.mteb_folder import tasks
    from unitsphere.mteb import load

    theirs = SentenceTransformer(str(model), device="cpu")
    for ours, same in zip(tasks(str(layouts), "test"), tasks(str(layouts), "test"), strict=True):
        quiet = {"cache": None, "co2_tracker": False, "show_progress_bar": False}
        [a], [b] = (mteb.evaluate(m, t, **quiet).task_results for m, t in ((load(model), ours), (theirs, same)))
        assert a.get_score() == pytest.approx(b.get_score(), abs=1e-4), a.task_name


def test_the_cache_of_mteb_tells_models_apart(layouts, model, tmp_path, embedder):
    from unitsphere.evaluation.mteb_folder import tasks
    from unitsphere.mteb import load

    again, cache = load(model), mteb.ResultCache(tmp_path / "cache")
    assert again.mteb_model_meta.revision == load(model).mteb_model_meta.revision == artefact.load(model).identity()
    changed = artefact.load(model)
    next(changed.parameters()).data[0, 0] += 1e-3
    prompted = artefact.load(model)
    prompted.prompts["query"] = "another: "
    assert len({m.identity() for m in (changed, prompted, artefact.load(model))}) == 3
    [task] = tasks(str(layouts / "sts"), "test")
    mteb.evaluate(again, task, cache=cache, co2_tracker=False, show_progress_bar=False)
    again.embed = None  # what is known is not computed again …
    mteb.evaluate(again, task, cache=cache, co2_tracker=False, show_progress_bar=False)
    again.mteb_model_meta.revision = changed.identity()  # … but for another model
    with pytest.raises(TypeError):
        mteb.evaluate(again, task, cache=cache, co2_tracker=False, show_progress_bar=False)


def seen(folder, **options):
    """(task's folder, role, prompt, length) of each call."""
    calls = set()

    def embed(texts, role, max_length=None, prompt=None):
        calls.add((role, prompt, max_length))
        return np.random.default_rng(0).normal(size=(len(texts), 4)).astype(np.float32)

    MTEB("test", path=str(folder), **options)(embed)
    return calls


def test_prompts_go_where_they_belong(layouts):
    assert seen(layouts / "docs", max_length=7) == {("query", None, 7), ("document", None, 7)}
    assert seen(layouts / "sts") == {("document", "", None)}
    prompts = {"STS": "a: ", "query": "q: ", "docs-document": "d: "}
    assert seen(layouts / "docs", prompts=prompts) == {("query", "q: ", None), ("document", "d: ", None)}
    assert seen(layouts / "sts", prompts=prompts) == {("document", "a: ", None)}
    told = seen(layouts / "docs", instruction="Do: {instruction}! ")
    assert told == {("query", "Do: Retrieve text based on user query.! ", None), ("document", "", None)}


def test_a_description_beside_the_data_is_followed(layouts, tmp_path):
    write(tmp_path / "nearby" / "test.jsonl", rows_of(layouts, "topics"))
    (tmp_path / "nearby" / "task.yaml").write_text("type: Clustering\nlanguages: [zho-Hans]\nprompt: Sort these\n")
    made = MTEB("test", path=str(tmp_path), instruction="{instruction}: ")
    [task] = made.tasks
    assert task.metadata.type == "Clustering" and task.languages == ["zho"] and task.metadata.prompt == "Sort these"
    assert seen(tmp_path, instruction="{instruction}: ") == {("document", "Sort these: ", None)}


def test_a_description_leaves_a_query_s_own_document_out(tmp_path):
    folder = tmp_path / "itself"
    write(folder / "corpus.jsonl", [{"_id": str(i), "text": f"a text of {i}"} for i in range(4)])
    write(folder / "queries.jsonl", [{"_id": "0", "text": "a text of 0"}])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n0\t1\t1\n")

    def embed(texts, role, max_length=None, prompt=None):
        return np.array([[1, int(text[-1]) / 10] for text in texts], np.float32)

    found = MTEB("test", path=str(folder), measures=["ndcg_at_1"])(embed)
    (folder / "task.yaml").write_text("ignore_identical_ids: true\n")
    without = MTEB("test", path=str(folder), measures=["ndcg_at_1"])(embed)
    assert (found.metrics["mteb-itself/ndcg_at_1"], without.metrics["mteb-itself/ndcg_at_1"]) == (0, 1)
    assert found.protocol != without.protocol
    (folder / "task.yaml").write_text("ignore_identical_ids: maybe\n")
    with pytest.raises(UsageError, match="true or false would fit"):
        MTEB("test", path=str(folder))


def test_what_is_held_out_of_training(layouts):
    held = MTEB("test", path=str(layouts)).held()
    assert len(held["mteb-docs"]) <= 25 and len(held["mteb-groups"]) == len(
        {r["sentences"] for r in rows_of(layouts, "groups")}
    )
    for name, columns in {
        "sts": ("sentence1", "sentence2"),
        "topics": ("text",),
        "pairs": ("sentence1", "sentence2"),
    }.items():
        assert set(held[f"mteb-{name}"]) == {r[c] for r in rows_of(layouts, name) for c in columns}


def test_dev_has_only_folders_with_a_dev_split(layouts, embedder):
    found = MTEB("dev", path=str(layouts), tasks=["STSBenchmark"])(embedder.embed)
    assert set(found.metrics) == {"mteb/mean_task", "mteb/mean_task_type", "mteb/sts"}
    nothing = MTEB("dev", tasks=["STSBenchmark"])
    assert nothing(embedder.embed) == Result({}, "", {}, {})
    assert score([nothing, MTEB("dev", path=str(layouts))], embedder.embed).primary == "mteb/mean_task"


def test_official_names_and_lists():
    lists = {"MTEB(eng, v2)": ("STSBenchmark", 41), "MTEB(cmn, v1)": ("T2Retrieval", 31)}
    for name, (task, count) in lists.items():
        tasks = MTEB("test", benchmark=name).tasks
        assert len(tasks) == count and task in {t.metadata.name for t in tasks}
    [task] = MTEB("test", tasks=["STS22.v2"], languages=["cmn"]).tasks
    assert set(task.hf_subsets) == {"zh", "zh-en"}
    nordic, norwegian = (MTEB("test", benchmark="MTEB(Scandinavian, v1)", languages=x).tasks for x in (None, ["nob"]))
    assert 0 < len(norwegian) < len(nordic) and all("nob" in t.languages for t in norwegian)


@pytest.mark.parametrize(
    "options, said",
    [
        ({}, "choose eval.mteb.tasks"),
        ({"tasks": ["STS1"]}, "STS1.* not found. Did you mean"),
        ({"benchmark": "MTEB(en)"}, "Did you mean"),
        ({"benchmark": "MTEB(cmn, v1)", "languages": ["deu"]}, "has no task in deu"),
        ({"tasks": ["STSBenchmark"], "languages": ["zho"]}, "No subsets"),
        ({"tasks": ["STS12", "STS12"]}, "STS12 is there twice"),
        ({"path": "nowhere"}, "no such folder"),
    ],
)
def test_a_wrong_choice_is_named(options, said):
    with pytest.raises(UsageError, match=said):
        MTEB("test", **options)


def test_without_a_hub_the_task_is_named(embedder):
    with pytest.raises(UsageError, match=r"task STSBenchmark: .*mteb/stsbenchmark-sts.*local folders"):
        MTEB("test", tasks=["STSBenchmark"])(embedder.embed)
    with pytest.raises(UsageError, match="task CQADupstackRetrieval: "):
        MTEB("test", tasks=["CQADupstackRetrieval"]).held()


@pytest.mark.parametrize(
    "rows, said",
    [
        ([{"question": "a", "answer": "b"}], "no type of task has the columns question, answer"),
        ([{"sentence1": "a", "sentence2": "b", "score": "high"}], "row 1: score is a number, found 'high'"),
        ([{"sentence1": "a", "sentence2": "b", "score": 1}, {"sentence1": "a", "score": 1}], "row 2: no sentence2"),
        ([{"sentence1": "a", "sentence2": "b", "label": i} for i in range(3)], "labels of pairs are 0 and 1"),
        ([{"sentences": ["a", "b"], "labels": [0, 1]}], r"row 1: text is one value a line, found \['a', 'b'\]"),
        ([], "no rows"),
    ],
)
def test_a_malformed_folder_is_named(tmp_path, rows, said):
    write(tmp_path / "mine" / "test.jsonl", rows)
    with pytest.raises(UsageError, match=said):
        MTEB("test", path=str(tmp_path))


def test_a_description_that_does_not_fit_is_named(tmp_path):
    write(tmp_path / "test.jsonl", [{"text": "a", "label": 1}])
    for text, said in (
        ("kind: STS", "main_score, prompt, ignore_identical_ids would"),
        ("type: Sorting", "type=Sorting"),
    ):
        (tmp_path / "task.yaml").write_text(text)
        with pytest.raises(UsageError, match=said):
            MTEB("test", path=str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no data set in mteb's layout"):
        MTEB("test", path=str(tmp_path / "empty"))


def test_mteb_is_needed_only_by_its_evaluator(monkeypatch, layouts):
    for name in [name for name in sys.modules if name.split(".")[0] == "mteb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mteb", None)
    spec = importlib.util.spec_from_file_location("fresh", evaluator.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    with pytest.raises(UsageError, match=r"pip install 'unitsphere\[mteb\]'"):
        fresh.MTEB("test", path=str(layouts))


def test_the_option_builds(layouts):
    made = build(composed("eval=mteb", f"eval.mteb.path={layouts}").eval.mteb, split="test", own=None)
    assert len(made.tasks) == 6


@pytest.mark.slow
def test_on_real_data_mteb_says_what_ours_and_sklearn_say(shared, tmp_path, monkeypatch):
    from unitsphere.evaluation.cached import CachedEmbed
    from unitsphere.evaluation.sts import STS

    monkeypatch.setenv("UNITSPHERE_DATA", str(shared))
    for name in ("scifact", "stsb-en", "mrpc"):
        (tmp_path / name).symlink_to(shared / name)
    embed = CachedEmbed(build_embedder(composed("encoder=minilm", "encoder.max_length=64")).eval().embed)
    ours = Retrieval("test", path="scifact")(embed).metrics
    found = MTEB("test", path=str(tmp_path), measures=[*AT.values(), "cosine_ap"])(embed).metrics
    for own, theirs in AT.items():
        mine = found[f"mteb-scifact/{theirs}"]
        assert mine == pytest.approx(ours[f"scifact/{own}"], abs=1e-4), own
    sts = STS("test", {"stsb": "stsb-en/test.jsonl"}, {"simcse": {}}, {})(embed).metrics["sts/stsb"]
    assert found["mteb/stsb-en"] == pytest.approx(sts, abs=1e-4)
    rows = rows_of(shared, "mrpc")
    ap = average_precision_score([r["label"] for r in rows], np.diag(cosines(embed, rows)))
    assert found["mteb-mrpc/cosine_ap"] == pytest.approx(ap, abs=1e-4)
    assert found["mteb/mrpc"] >= ap - 1e-4  # mteb's main score is the best of several distances


def drawn(texts, *_):
    """A vector that its text decides."""
    return np.stack([np.random.default_rng(list(f" {t}".encode())).normal(size=8) for t in texts]).astype("f4")


def test_tasks_that_are_finished_are_whole(layouts, tmp_path):
    """A second passes with each text."""
    for name in ("groups", "sts"):
        (tmp_path / name).symlink_to(layouts / name)
    now = [0.0]

    def embed(texts, role, max_length=None, prompt=None):
        now[0] += len(texts)
        return drawn(texts)

    def made(path, seconds):
        return score([MTEB("test", path=str(path))], embed, seconds, lambda: now[0])

    part, whole, nothing = made(tmp_path, 50), made(tmp_path, None), made(tmp_path / "sts", 5)
    assert set(part.metrics) == {"mteb/groups"} and part.metrics["mteb/groups"] == whole.metrics["mteb/groups"]
    assert part.primary == whole.primary == "mteb/mean_task"
    assert unfinished(part, part.primary) and part.protocol["mteb"]["stopped"] == "1 of 2 tasks"
    assert nothing.protocol == {"mteb": {"stopped": "nothing finished"}}


def test_a_table_refuses_other_prompts(layouts):
    def record(prompts):
        made = MTEB("test", path=str(layouts / "sts"), prompts=prompts, measures=["cosine_pearson"])
        result = made(drawn)
        assert {name.partition("/")[0] for name in result.metrics} <= result.protocol.keys()
        return SimpleNamespace(info={"protocol": dict(result.protocol)})

    records = [record(prompts) for prompts in ({}, {"STS": "a: "})]
    for metric in ("mteb/sts", "mteb-sts/cosine_pearson"):
        with pytest.raises(UsageError, match="prompts is"):
            refuse_mixed_protocols(records, [f"test/{metric}"])


def test_what_was_loaded_to_be_read_is_unloaded(layouts):
    made, calls = MTEB("test", path=str(layouts / "sts")), []
    [task] = made.tasks
    task.load_data, task.unload_data = lambda **_: calls.append("load"), lambda: calls.append("unload")
    made.held()
    assert "unload" not in calls  # its data was there before
    task.data_loaded = False
    calls.clear()
    made.held()
    assert calls == ["load", "unload"]
