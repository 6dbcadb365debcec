"""Pages of runs and sweeps: what is on them, with what is missing too, and that a browser shows them."""

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from conftest import browsed, command
from made_runs import made
from test_training import run_here
from unitsphere.cli import report
from unitsphere.errors import UsageError
from unitsphere.evaluation.geometry import flat
from unitsphere.evaluation.retrieval import places, worst
from unitsphere.report import sweep_page
from unitsphere.runs import Run
from unitsphere.types import RetrievalSet

BAD = "<script>alert(1)</script> & café 中文"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with every evaluator, whose texts would break a page that does not escape."""
    folder = tmp_path_factory.mktemp("finished")
    os.environ["UNITSPHERE_CACHE"] = str(folder / "cache")
    rows = [{"anchor": f"{BAD} {i} of {i % 7}", "positive": f"it is {i} {BAD}"} for i in range(100)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pairs = [{"sentence1": f"{BAD} {i}", "sentence2": f"{i * 3 % 11}", "score": i % 6} for i in range(60)]
    (folder / "stsb-en").mkdir()
    for split in ("dev", "test"):
        (folder / "stsb-en" / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in pairs))
    others = ("sts12", "sts13", "sts14", "sts15", "sts16", "sickr")
    sts = ["eval=[retrieval,geometry,sts]", f"eval.sts.path={folder}", *(f"~eval.sts.tests.{name}" for name in others)]
    return run_here(folder / "rows.jsonl", folder / "out", "data.held_out=30", *sts)


def written(run):
    return report.of_run(run).read_text(encoding="utf-8")


def test_the_page_of_a_run_shows_all_of_it_and_escapes(finished):
    text = written(finished)
    assert "<script>alert" not in text and "café 中文" in text
    assert not re.search(r"""(src|href)=["']?http|@import|url\(h""", text)
    for heading in ("Scores on test", "Training", "Cosines", "The space", "Worst queries", "Pairs that are furthest"):
        assert f"<h2>{heading}" in text
    for curve in pd.read_csv(finished.folder / "metrics.csv")["metric"].unique():
        assert f">{curve}</text>" in text
    maps = [pd.read_parquet(finished.folder / f"scores/{s}/geometry-map.parquet") for s in ("before", "test")]
    assert text.count("<title>&lt;script&gt;") == sum(m["text"].str.startswith("<script>").sum() for m in maps) > 0
    for name, value in finished.metrics.items():
        if name.startswith("test/docs"):
            assert f"{100 * value:.2f}" in text
    assert text == written(finished)


def test_the_worst_are_first_and_the_page_shows_them(finished):
    table = pd.read_parquet(next((finished.folder / "scores/test").glob("*-worst.parquet")))
    assert table["mrr@10"].is_monotonic_increasing and len(table) == 10
    text = written(finished)
    assert text.index("Worst queries") < text.index("&lt;script&gt;", text.index("Worst queries"))


def test_worst_says_what_was_sought_and_what_was_found():
    corpus = {d: f"document {d}" for d in "abcd"}
    made_set = RetrievalSet("s", corpus, {"q1": "one", "q2": "x" * 400, "q3": "three"}, {})
    made_set.qrels.update({"q1": {"a": 1}, "q2": {"b": 1, "c": 0}, "q3": {"d": 2}})
    run = {"q1": {"a": 0.9, "b": 0.5}, "q2": {"c": 0.9, "a": 0.8, "b": 0.7}, "q3": {"a": 0.5, "b": 0.5}}
    items = pd.DataFrame({"query": ["q1", "q2", "q3"], "mrr@10": [1.0, 1 / 3, 0.0]})
    items = items.merge(places(run, made_set.qrels), on="query")
    found = worst(items, made_set).to_dict("records")
    assert [r["query"] for r in found] == ["q3", "q2", "q1"]
    assert np.isnan(found[0]["rank"]) and found[0]["relevant"] == "document d" and found[0]["found"] == "document b"
    assert found[1]["rank"] == 3 and found[1]["found"] == "document c" and len(found[1]["text"]) == 300
    assert found[2]["rank"] == 1 and worst(items, made_set, 1)["query"].tolist() == ["q3"]


def test_the_map_is_the_plane_of_most_variance():
    rng = np.random.default_rng(0)
    q, d = rng.normal(size=(2, 40, 6)) * [5, 3, 1, 1, 1, 1]
    table = flat(q, d, [f"q{i}" for i in range(40)], [f"d{i}" for i in range(40)], count=30)
    both = np.concatenate([q[:30], d[:30]])
    u, s, _ = np.linalg.svd(both - both.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(table[["x", "y"]].abs(), np.abs(u[:, :2] * s[:2]), atol=1e-8)
    assert table["text"].tolist()[28:32] == ["q28", "q29", "d0", "d1"]
    assert table["role"].tolist()[29:31] == ["query", "document"] and table["pair"].tolist()[29:31] == [29, 0]
    assert len(flat(q[:1], d[:1], ["q"], ["d"])) == 2


def copied(run, to):
    shutil.copytree(run.folder, to)
    return Run(to)


def test_a_run_that_was_cut_has_a_page_of_what_is_there(finished, tmp_path):
    run = copied(finished, tmp_path / "cut")
    shutil.rmtree(run.folder / "scores")
    (run.folder / "metrics.json").unlink()
    (run.folder / "metrics.csv").write_text("")
    info = {"status": "failed", "error": "RuntimeError: <no>", "choices": {"loss": "simcse"}}
    (run.folder / "run.json").write_text(json.dumps(info))
    text = written(run)
    assert "failed, RuntimeError: &lt;no&gt;" in text and "<h2>" not in text


def test_a_curve_that_is_not_a_number_is_drawn_where_it_is_one(finished, tmp_path):
    run = copied(finished, tmp_path / "nan")
    table = pd.read_csv(run.folder / "metrics.csv")
    table.loc[table.index[3:], "value"] = float("nan")
    table.to_csv(run.folder / "metrics.csv", index=False)
    left = set(table["metric"][:3])
    text = written(run)
    assert all((f">{m}</text>" in text) == (m in left) for m in table["metric"].unique() if m.startswith("train/"))


def test_an_evaluation_has_no_page(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"status": "done"}))
    (tmp_path / "config.yaml").write_text("model: x\n")
    with pytest.raises(UsageError, match="an evaluation has no page"):
        report.of_run(Run.open(tmp_path))


@pytest.fixture
def cells(tmp_path):
    for loss in ("infonce", "simcse"):
        for temperature in (0.1, 0.05, 1.0):
            for seed in (1, 2):
                made(tmp_path, loss, "mean", seed, 0.5 + temperature / 9, temperature=temperature)
    return tmp_path


def test_the_page_of_a_sweep(cells):
    text = sweep_page.page(cells, "12 of 12 cells <done>")
    assert "12 of 12 cells &lt;done&gt;" in text
    for heading in ("Table: test/docs/mrr@10", "Heat map", "Settings and result, a line a run", "Cells"):
        assert f"<h2>{heading}</h2>" in text
    assert [text.index(f'<td class="row">{t}</td>') for t in ("0.05", "0.1", "1")] == sorted(
        text.index(f'<td class="row">{t}</td>') for t in ("0.05", "0.1", "1")
    )
    assert text.count('<td class="row">done</td>') == 12


def test_a_sweep_without_a_result_or_with_one_cell_has_a_page(tmp_path):
    folder = made(tmp_path, "infonce")
    assert "Heat map" not in sweep_page.page(tmp_path, "1 of 2")
    info = json.loads((folder / "run.json").read_text()) | {"status": "failed"}
    (folder / "run.json").write_text(json.dumps(info))
    assert "no run is done" in sweep_page.page(tmp_path, "0 of 2")


@pytest.mark.parametrize("of", ["run", "sweep"])
def test_a_browser_opens_the_page_without_errors(finished, cells, tmp_path, of):
    file = tmp_path / "page.html"
    text = written(finished) if of == "run" else sweep_page.page(cells, "done")
    click = "<script>document.querySelectorAll('th')[1].click()</script>"
    file.write_text(text + click)
    done = browsed(file)
    assert "CONSOLE" not in done.stderr and done.stdout.count("<svg") == text.count("<svg")
    body = done.stdout[done.stdout.index("<thead>") :]
    column = re.findall(r"<tr><td[^>]*>[^<]*</td><td[^>]*>([^<]*)</td>", body[: body.index("</table>")])
    numbers = [float(x) for x in column]
    assert len(numbers) > 1 and numbers == sorted(numbers, reverse=True)


@pytest.mark.slow
def test_the_verb(finished, tmp_path):
    run = copied(finished, tmp_path / "run")
    done = command("report", run.folder)
    assert done.stdout.strip() == str(run.folder / "report.html") and (run.folder / "report.html").exists()
    missing = command("report", tmp_path / "none", check=False)
    assert missing.returncode == 2 and "is not a run folder" in missing.stderr
    none = command("report", check=False)
    assert none.returncode == 2 and "unitsphere report FOLDER…" in none.stdout + none.stderr
