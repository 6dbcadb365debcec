"""Studies: run what is missing, and a committed table that follows from the runs or is found out."""

import csv
import shutil

import pytest

from conftest import command
from unitsphere.cli.study import Study
from unitsphere.errors import UsageError
from unitsphere.report import runs_csv
from unitsphere.report.records import Record, find

STUDY = """
runs:
  loss: trainer.max_steps=1 loss=infonce,simcse,triplet seed=1 {settings}
  another: trainer.max_steps=2 loss=infonce optim.lr=1e-4 seed=1,2,3 {settings}
table:
  rows: loss,trainer.max_steps
  metric: pairs/mrr@10
  baseline: loss=simcse
"""


@pytest.fixture
def study(tmp_path, pairs):
    settings = (
        f"encoder=tiny data=pairs 'data.path={pairs}' data.batch_size=16 eval=retrieval trainer.threads=1 "
        "trainer.accelerator=cpu ~callbacks.progress"
    )
    folder = tmp_path / "experiments" / "mine"
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(STUDY.format(settings=settings))
    return folder


@pytest.mark.slow
def test_a_study_runs_what_is_missing_and_its_table_is_checked(study, tmp_path):
    def unitsphere(*arguments, check=True):
        done = command(*arguments, check=check, cwd=tmp_path)
        done.stdout = " ".join(done.stdout.split())  # lines are broken at the width of the terminal
        return done

    unitsphere("study", "run", "experiments/mine")
    runs = find([tmp_path / "outputs"])
    assert len(runs) == 6 and {p.name for p in study.iterdir()} >= {"runs.csv", "table.md", "table.tex", "table.html"}
    assert str(tmp_path) not in (study / "runs.csv").read_text() + (study / "table.md").read_text()
    written = (study / "table.md").read_text()
    done = unitsphere("study", "check", "experiments/mine")
    assert "6 runs, and the table follows from them; runs.csv says what the run folders say" in done.stdout

    shutil.rmtree(runs[0].folder)
    failed = unitsphere("study", "check", "experiments/mine", check=False)
    assert failed.returncode == 1 and "is in runs.csv, and not among the runs" in failed.stdout
    again = unitsphere("study", "run", "experiments/mine")
    assert again.stdout.count("done before") == 5 and (study / "table.md").read_text() == written
    assert "infonce" in unitsphere("table", "experiments/mine/study.yaml", "metric=pairs/recall@1").stdout

    shutil.rmtree(tmp_path / "outputs")  # as on another machine
    done = unitsphere("study", "check", "experiments/mine")
    assert "the run folders, and so intervals, are not here" in done.stdout
    assert "simcse" in unitsphere("table", "experiments/mine/study.yaml").stdout
    with (study / "runs.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    rows[1]["test/pairs/mrr@10"] = str(float(rows[1]["test/pairs/mrr@10"]) + 0.1)
    with (study / "runs.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows[1:])
    failed = unitsphere("study", "check", "experiments/mine", check=False)
    assert failed.returncode == 1 and "asks for 6 runs, and runs.csv has 5" in failed.stdout
    assert "table.md does not follow from runs.csv" in failed.stdout


def test_runs_written_to_a_csv_are_read_back_equal(tmp_path):
    settings = {"seed": 1, "loss": "7", "a.b": "1e5", "c": [1, "x,y"], "d": None, "e": True, "f": "Grüße\n", "g": 0.1}
    info = {
        "status": "done",
        "looks": [],
        "versions": {"torch": "2.10", "x": None},
        "git": {"commit": "12", "dirty": False},
        "protocol": {"cqa.android": {"max.length": 7}},
    }
    metrics = {"test/a/b": 0.1 + 0.2, "test/a/c": float("nan")}
    record = Record(tmp_path / "run", info, settings, metrics)
    (tmp_path / "runs.csv").write_text(runs_csv.written([record]))
    (back,) = runs_csv.read(tmp_path / "runs.csv")
    assert back.settings == settings and back.info == info and back.folder == record.folder
    assert back.metrics["test/a/b"] == 0.1 + 0.2 and str(back.metrics["test/a/c"]) == "nan"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the keys runs and table"),
        ("runs: {a: loss=simcse}", "the keys runs and table"),
        ("runs: [a]\ntable: {rows: loss}", "runs should be"),
        ("runs: {a: loss=simcse}\ntable: {row: loss}", "no option 'row'"),
        ("runs: {a: [", "study.yaml:"),
    ],
)
def test_a_study_that_says_nothing_is_refused(tmp_path, text, message):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        Study.read(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["check", "."], "is no study"), (["look", "."], "would fit"), (["run"], "would fit")],
)
def test_bad_usage_is_one_message(tmp_path, arguments, message):
    done = command("study", *arguments, check=False, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_a_broken_runs_csv_is_named(tmp_path):
    for text in ("", "loss,seed\n", "run,loss\na,b,c\n", "run,loss\na\n"):
        (tmp_path / "runs.csv").write_text(text)
        if text.count("\n") > 1:
            with pytest.raises(UsageError, match=r"runs.csv, line 2"):
                runs_csv.read(tmp_path / "runs.csv")
        else:
            assert runs_csv.read(tmp_path / "runs.csv") == []
