"""Tables over made-up run folders: the statistics, the layouts, and each planted fault is found."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from conftest import browsed, command
from made_runs import METRIC, PROTOCOL, made
from unitsphere.errors import UsageError
from unitsphere.report import page, render
from unitsphere.report.records import find
from unitsphere.report.sheet import ablation, sheet
from unitsphere.report.significance import difference


@pytest.fixture
def grid(tmp_path):
    """2 losses x 2 poolings x 3 seeds; infonce with mean pooling is best."""
    for loss in ("infonce", "simcse"):
        for pooling in ("mean", "cls"):
            for seed in (1, 2, 3):
                level = 0.4 + 0.1 * (loss == "infonce") + 0.05 * (pooling == "mean")
                made(tmp_path, loss, pooling, seed, level)
    return tmp_path


def test_rows_are_what_differs_and_cells_are_mean_and_sd_over_seeds(grid):
    table = sheet(find([grid]))
    assert table.headings == ("loss", "pooling") and table.columns == (METRIC,)
    values = [r.metrics[f"test/{METRIC}"] for r in find([grid]) if r.setting("loss") == "simcse"][:3]
    (cell,) = table.rows["simcse", "cls"]
    assert cell.mean == pytest.approx(np.mean(values)) and cell.sd == pytest.approx(np.std(values, ddof=1))
    assert [cells[0].place for cells in table.rows.values()] == [1, 2, 0, 0]
    assert table.notes == ("checkpoints chosen by dev, 3 looks a run; " + table.notes[0].split("; ", 1)[1],)
    assert "dev - test +2.00 on average" in table.notes[0]


def test_columns_of_a_key(grid):
    table = sheet(find([grid]), rows=["loss"], cols=["pooling"])
    assert table.columns == ("mean", "cls") and list(table.rows) == [("infonce",), ("simcse",)]
    assert [c.place for c in table.rows["infonce",]] == [1, 1]


def test_the_caption_names_the_metric_where_no_column_does(grid):
    records = find([grid])
    assert render.caption(sheet(records, rows=["loss"], cols=["pooling"])) == f"{METRIC}: {render.NOTE}"
    for metrics in ([], ["sts/sts*"], ["last/docs/*"]):
        assert render.caption(sheet(records, metrics=metrics)) == render.NOTE


def test_differences_say_which_cell_they_are_from(grid):
    both = sheet(find([grid]), rows=["loss"], cols=["pooling"], baseline={"loss": "simcse", "pooling": "cls"})
    assert "Differences from simcse cls:" in render.markdown(both)
    own = sheet(find([grid]), rows=["loss"], cols=["pooling"], baseline={"loss": "simcse"})
    assert "Differences from simcse:" in render.markdown(own)
    assert own.rows["simcse",][0].difference is None and both.rows["simcse",][0].difference is not None


def test_numbers_stand_by_size_and_words_as_the_runs_began(tmp_path):
    for loss, temperature in (("simcse", 0.1), ("simcse", 0.05), ("infonce", 1.0), ("simcse", 1.0)):
        made(tmp_path, loss, temperature=temperature)
    table = sheet(find([tmp_path]), rows=["loss", "loss.temperature"])
    assert list(table.rows) == [("simcse", "0.05"), ("simcse", "0.1"), ("simcse", "1"), ("infonce", "1")]


def test_a_baseline_is_meant_however_a_number_is_typed(tmp_path):
    for temperature in (0.0, 0.0001):
        made(tmp_path, temperature=temperature)
    for typed in ("0.0", "0", "1e-4", "0.00010"):
        table = sheet(find([tmp_path]), rows=["loss.temperature"], baseline={"loss.temperature": typed})
        assert table.baseline == (f"{float(typed):g}",)
    made(tmp_path, temperature=1_000_000)
    for typed in ("1000000", "1e6"):
        table = sheet(find([tmp_path]), rows=["loss.temperature"], baseline={"loss.temperature": typed})
        assert table.baseline == ("1000000",)


def test_less_is_better_where_it_is(grid):
    table = sheet(find([grid]), metrics=["geometry/uniformity"])
    assert table.rows["infonce", "mean"][0].place == 1 and "-2.550" in render.number(table.rows["infonce", "mean"][0])


def test_a_metric_that_is_not_a_number_has_no_place(grid):
    (record,) = by(grid, loss="infonce", pooling="mean", seed="1")
    (record.folder / "metrics.json").write_text(json.dumps(dict(record.metrics) | {f"test/{METRIC}": float("nan")}))
    places = {row: cells[0].place for row, cells in sheet(find([grid])).rows.items()}
    assert places["infonce", "mean"] == 0 and places["infonce", "cls"] == 1


def test_patterns_of_metrics_and_stages(grid):
    assert sheet(find([grid]), metrics=["sts/sts*"]).columns == ("sts/sts12", "sts/stsb")
    assert sheet(find([grid]), metrics=["last/docs/*"]).columns == (f"last/{METRIC}",)
    with pytest.raises(UsageError, match=r"metric=nothing: no run has it\. There are docs/mrr@10"):
        sheet(find([grid]), metrics=["nothing"])


def by(folder, **settings):
    return [r for r in find([folder]) if all(r.setting(k) == v for k, v in settings.items())]


def test_the_interval_of_a_mean_is_scipys(grid):
    a, b = by(grid, loss="simcse", pooling="cls"), by(grid, loss="infonce", pooling="cls")
    mean = [
        np.mean([pd.read_parquet(r.folder / "scores/test/docs.parquet")["mrr@10"] for r in group], axis=0)
        for group in (a, b)
    ]
    expected = stats.bootstrap((mean[1] - mean[0],), np.mean, method="percentile", rng=0).confidence_interval
    found = difference(a, b, f"test/{METRIC}", f"test/{METRIC}")
    assert found.value == pytest.approx((mean[1] - mean[0]).mean(), abs=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.003)
    assert found.p_items == pytest.approx(1 / 1000.5, rel=1e-6)  # no resample was on the other side
    values = [[r.metrics[f"test/{METRIC}"] for r in group] for group in (a, b)]
    assert found.p_seeds == pytest.approx(stats.ttest_rel(values[1], values[0]).pvalue)
    deltas = np.subtract(values[1], values[0])
    assert found.effect == pytest.approx(deltas.mean() / deltas.std(ddof=1))


def test_a_seed_with_several_runs_is_no_partner_of_one(grid):
    sides = [by(grid, loss=loss) for loss in ("simcse", "infonce")]  # two poolings a seed
    made_of_all = difference(*sides, f"test/{METRIC}", f"test/{METRIC}")
    assert made_of_all.value > 0 and made_of_all.low is not None
    assert made_of_all.p_seeds is None and made_of_all.effect is None
    whole = [by(grid, loss=loss, pooling="cls") for loss in ("simcse", "infonce")]
    assert difference(*whole, f"test/{METRIC}", f"test/{METRIC}").p_seeds is not None


def test_without_a_metric_it_is_the_first_primary_that_there_is(grid):
    folder = grid / "a_bench"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"status": "done"}))
    (folder / "metrics.json").write_text("{}")
    (folder / "config.yaml").write_text("{}")
    assert sheet(find([grid])).columns == (METRIC,)


def test_p_of_equal_models_is_that_of_a_paired_t_test(tmp_path):
    a, b = ([read] for read in find([made(tmp_path, "x", level=0.50), made(tmp_path, "yy", level=0.50)]))
    found = difference(a, b, f"test/{METRIC}", f"test/{METRIC}")
    x, y = (pd.read_parquet(g[0].folder / "scores/test/docs.parquet")["mrr@10"] for g in (a, b))
    assert found.p_items == pytest.approx(stats.ttest_rel(x, y).pvalue, abs=0.05)


@pytest.mark.parametrize("metric", ["test/sts/sts12", "test/sts/avg"])
def test_the_interval_of_spearman_is_that_of_resampled_pairs(tmp_path, metric):
    a, b = ([read] for read in find([made(tmp_path, "x", noise=3.0), made(tmp_path, "yy", noise=2.0)]))
    found = difference(a, b, metric, metric)
    tasks = ["sts12", "stsb"] if metric.endswith("avg") else ["sts12"]
    rng, drawn = np.random.default_rng(0), []
    tables = {
        (g, t): pd.read_parquet(r[0].folder / f"scores/test/sts-{t}.parquet")
        for g, r in enumerate((a, b))
        for t in tasks
    }
    for _ in range(400):
        rows, rho = rng.integers(0, 400, 400), {}
        for key, table in tables.items():
            some = table.iloc[rows]
            rho[key] = stats.spearmanr(some.prediction, some.score).statistic
        drawn.append(np.mean([rho[1, t] - rho[0, t] for t in tasks]))
    assert found.value == pytest.approx(b[0].metrics[metric] - a[0].metrics[metric])
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.015)


def test_a_baseline_row_and_the_untrained_model(grid):
    table = sheet(find([grid]), baseline={"loss": "simcse", "pooling": "cls"})
    assert table.rows["simcse", "cls"][0].difference is None
    assert table.rows["infonce", "mean"][0].difference.value == pytest.approx(0.14, abs=0.03)
    trained = sheet(find([grid]), baseline="before").rows["simcse", "cls"][0].difference
    assert trained.value == pytest.approx(0.18, abs=0.04) and trained.p_items < 0.01
    with pytest.raises(UsageError, match="baseline=loss=simcse names 2 rows"):
        sheet(find([grid]), baseline={"loss": "simcse"})
    with pytest.raises(UsageError, match="optim is no row or column here"):
        sheet(find([grid]), baseline={"optim": "adamw"})
    with pytest.raises(UsageError, match="baseline=full: before, or key=value"):
        sheet(find([grid]), baseline="full")


def test_in_a_grid_the_baseline_is_of_the_same_column_unless_it_names_one(grid):
    table = sheet(find([grid]), ["loss"], ["pooling"], baseline={"loss": "simcse"})
    assert [c.difference is None for c in table.rows["simcse",]] == [True, True]
    one = sheet(find([grid]), ["loss"], ["pooling"], baseline={"loss": "simcse", "pooling": "cls"})
    assert [c.difference is None for c in one.rows["simcse",]] == [False, True]


def test_an_ablation_says_what_departs_from_the_full_model(grid):
    table = ablation(sheet(find([grid]), baseline={"loss": "infonce", "pooling": "mean"}))
    assert list(table.rows) == [("full",), ("pooling = cls",), ("loss = simcse",), ("loss = simcse, pooling = cls",)]
    with pytest.raises(UsageError, match="needs the full model"):
        ablation(sheet(find([grid])))


@pytest.mark.parametrize(
    ("fault", "note"),
    [
        ({"versions": {"torch": "2.9.0"}}, "torch is not the same: 2.13.0 (11) · 2.9.0 (1)"),
        ({"data": {"train": {"sha256": "2" * 64}}}, "train data is not the same: 1111111 (11) · 2222222 (1)"),
        ({"git": {"commit": "b" * 40, "dirty": False}}, "commit is not the same: aaaaaaa (11) · bbbbbbb (1)"),
        ({"git": {"commit": "a" * 40, "dirty": True}}, "uncommitted changes in the code of simcse-mean-7"),
        ({"threads": 1, "processor": "x"}, None),
        ({"temperature": 0.1}, "loss.temperature differs outside the table's axes: 0.05 (11) · 0.1 (1)"),
        ({"seed": 7}, "simcse × mean has seeds 1, 2, 7; most have 1, 2, 3"),
        ({"status": "failed"}, "is failed"),
    ],
)
def test_each_inequality_is_named(grid, fault, note):
    (old,) = by(grid, loss="simcse", pooling="mean", seed="3")
    shutil.rmtree(old.folder)
    fault = {"seed": 3} | fault
    if fault["seed"] == 7:
        made(grid, "simcse", "mean", level=0.45, **fault)
    else:
        made(grid, "simcse", "mean", level=0.45, **fault).rename(grid / "simcse-mean-7")
    notes = "\n".join(sheet(find([grid]), rows=["loss"], cols=["pooling"]).notes)
    assert notes.count("\n") == 0 if note is None else note in notes


def test_missing_cells_and_runs_done_twice_are_named(grid):
    for record in by(grid, loss="simcse", pooling="mean"):
        shutil.rmtree(record.folder)
    made(grid, "infonce", "mean", 1, level=0.3)
    table = sheet(find([grid]), rows=["loss"], cols=["pooling"])
    assert "missing cells: simcse × mean" in table.notes
    assert any(note.startswith("measured twice, test/docs/mrr@10 of") for note in table.notes)
    assert table.columns == ("mean", "cls") and render.number(table.rows["simcse",][0]) == "-"
    assert len(table.rows["infonce",][0].runs) == 3


def test_protocols_are_not_mixed_unless_it_is_allowed(grid):
    made(grid, "triplet", "mean", 1, protocol={"docs": PROTOCOL["docs"] | {"max_length": 64}})
    with pytest.raises(UsageError, match="did not measure docs in the same way: max_length is 32 and 64"):
        sheet(find([grid]))
    assert ("triplet", "mean") in sheet(find([grid]), mix=True).rows
    assert sheet(find([grid]), metrics=["sts/avg"]).rows  # that one was measured in one way


def test_an_evaluation_has_the_settings_of_the_run_it_scored(grid, tmp_path):
    (run,) = by(grid, loss="simcse", pooling="cls", seed="2")
    folder = tmp_path / "evaluations" / "eval"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "done", "primary": METRIC, "protocol": PROTOCOL}))
    (folder / "metrics.json").write_text(json.dumps({f"test/{METRIC}": 0.9}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": str(run.folder)}))
    (record,) = find([folder])
    assert (record.setting("loss"), record.seed, record.metrics) == ("simcse", 2, {f"test/{METRIC}": 0.9})
    shutil.rmtree(run.folder / "scores")
    (run.folder / "metrics.json").write_text("{}")
    table = sheet(find([grid]))  # the run itself was not scored; its evaluation stands for it
    assert len(table.rows["simcse", "cls"][0].runs) == 3 and not any("seeds" in note for note in table.notes)


def test_an_untrained_model_stands_beside_the_runs(grid, tmp_path):
    shutil.copytree(by(grid, loss="simcse", pooling="cls", seed="2")[0].folder / "scores", tmp_path / "eval" / "scores")
    folder = tmp_path / "eval"
    (folder / "run.json").write_text(json.dumps({"status": "done", "primary": METRIC, "protocol": PROTOCOL}))
    (folder / "metrics.json").write_text(json.dumps({f"test/{METRIC}": 0.2}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": "some/model", "threads": 1, "eval": {}}))
    table = sheet(find([grid, folder]), rows=["loss"], baseline={"loss": "untrained"})
    assert table.rows["untrained",][0].mean == 0.2 and table.rows["infonce",][0].difference.p_items < 0.01
    assert [note for note in table.notes if "seed" in note or "model" in note or "threads" in note] == []


def test_markdown_latex_and_csv(grid):
    table = sheet(find([grid]), baseline={"loss": "simcse", "pooling": "cls"}, metrics=[METRIC, "geometry/*"])
    text = render.markdown(table)
    first = render.number(table.rows["infonce", "mean"][0])
    assert f"| infonce | mean | **{first}** | **-2.550 ± 0.000 (3)** |" in text and "<u>" in text
    assert all(line.count("|") in (0, 5, 8) for line in text.splitlines())
    tex = render.latex(table)
    assert r"loss & pooling & docs/mrr@10 & geometry/uniformity \\" in tex and tex.count(r"\\") == 5
    assert r"\textbf{" + first.split(" ")[0] + r"} $\pm$" in tex
    rows = pd.read_csv(pd.io.common.StringIO(render.csv(table)))
    assert len(rows) == 8 and set(rows.n) == {3} and rows.difference.isna().sum() == 2
    assert rows["mean"][0] == table.rows["infonce", "mean"][0].mean


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_the_latex_compiles(grid, tmp_path):
    table = sheet(find([grid]), metrics=["docs/*", "geometry/*"], baseline="before")
    odd = sheet_of_names("a_b & 50% ~ ^ \\ {x} #1 $2 é")
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n%s\n\n%s\\end{document}"
    (tmp_path / "t.tex").write_text(document % (render.latex(table), render.latex(odd)), encoding="utf-8")
    line = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "t.pdf").exists(), done.stdout[-1000:]
    assert "$-$2.550" in render.latex(table)


def test_latex_escapes():
    assert render.latex(sheet_of_names("a_b & 50%")).count(r"a\_b \& 50\%") == 1


def sheet_of_names(name):
    from unitsphere.report.sheet import Cell, Sheet

    return Sheet(("name",), ("m",), {(name,): (Cell("test/a/m", (), 0.5, None),)}, ())


def test_the_page_is_whole_and_escapes(grid):
    text = page.page(sheet(find([grid]), metrics=["docs/*"], baseline="before"), "a <table>")
    assert not re.search(r"""(src|href)=["']?http|@import|url\(h""", text)
    assert "a &lt;table&gt;" in text and text.count("<svg") == 1 and text.count("<tr>") == 10
    assert text == page.page(sheet(find([grid]), metrics=["docs/*"], baseline="before"), "a <table>")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_opens_in_a_browser_without_errors(grid, tmp_path):
    file = tmp_path / "t.html"
    file.write_text(page.page(sheet(find([grid])), "t"))
    done = browsed(file)
    assert "<svg" in done.stdout and "CONSOLE" not in done.stderr


def test_the_verb_prints_and_writes(grid, tmp_path):
    done = command("table", str(grid), "rows=loss", "cols=pooling", f"out={tmp_path}/out/t", "baseline=loss=simcse")
    assert "differences from simcse" in done.stdout and "infonce" in done.stdout
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"t.md", "t.tex", "t.csv", "t.html"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no run is there, and no such folder"),
        (["."], ".: no run is there."),
        (["GRID", "colour=red"], "'colour=red' is not understood; rows=…, cols=…"),
        (["GRID", "rows=optim.lr"], "no run has a group or key 'optim.lr'; they differ in loss, pooling"),
        (["GRID", "cols=loss", "metric=sts/*"], "cols= takes one metric, and there are 3"),
        (["GRID", "layout=cube"], "layout=cube: grid or ablation would fit"),
        (["rows=loss"], "name one or more folders of runs"),
    ],
)
def test_bad_usage_is_one_message(grid, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    line = [str(grid) if a == "GRID" else a for a in arguments]
    done = command("table", *line, check=False, cwd=tmp_path / "empty")
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_torch_is_not_imported(grid):
    code = f"import sys; sys.argv = ['unitsphere', 'table', {str(grid)!r}]; from unitsphere.cli.main import main; main(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_diff_shows_what_differs_and_every_metric(grid):
    a, b = (by(grid, loss=loss, pooling="mean", seed="1")[0].folder for loss in ("infonce", "simcse"))
    (other,) = by(grid, loss="simcse", pooling="mean", seed="1")
    (b / "run.json").write_text(json.dumps(dict(other.info) | {"versions": {"torch": "2.9.0"}}))
    done = command("diff", a, b, env=os.environ | {"COLUMNS": "200"})
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("│")}
    assert "infonce" in lines["loss"] and "simcse" in lines["loss"] and "2.9.0" in lines["torch"]
    assert "pooling" not in lines and f"test/{METRIC}" in lines and "seed" not in lines
    done = command("diff", grid, check=False)
    assert done.returncode == 2 and "two runs are compared, and 1 were named" in done.stderr
    done = command("diff", grid, a, check=False)
    assert done.returncode == 2 and "hold 13 runs; name two" in done.stderr
