"""What a person types wrong gets one message, status 2 and no traceback."""

import json

import pytest
from omegaconf import OmegaConf

from conftest import command
from unitsphere.cli.hydra_app import divided, make_absolute
from unitsphere.cli.main import main
from unitsphere.errors import UsageError
from unitsphere.report.table import show

TINY = ["encoder=tiny", "trainer.max_steps=1", "trainer.accelerator=cpu"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "loss=simsce"], ["Could not find 'loss/simsce'", "simcse_sup", "Did you mean 'simcse'?"]),
        (["train", "loss.temprature=0.1"], ["loss.temprature", "Did you mean 'temperature'?"]),
        (["train", *TINY, "loss.temperature=abc"], ["SimCSE: temperature=abc: a number would fit"]),
        (["train", "seed=abc"], ["seed=abc: a number would fit"]),
        (["train", "trainer.steps=3"], ["There is no key 'steps' here", "Did you mean 'max_steps'?"]),
        (["train", "data.path=/a (1).csv"], ["""Where it is a text, quote it: "data.path='/a (1).csv'\""""]),
        (["train", "nonsense"], ["nonsense"]),
        (["train", *TINY, "data=pairs"], ["data.path is not set"]),
        (["train", *TINY, "data=pairs", "data.path=nothing.csv"], ["nothing.csv", "no such file"]),
        (["train", *TINY, "data=text", "data.path={empty}", "eval=geometry"], ["it is empty"]),
        (["train", *TINY, "data=pairs", "data.path={bad}"], ["row 2", "no column 'positive'"]),
        (["train", *TINY, "loss=infonce", "data=text", "data.path={bad}"], ["no positive", "data=beir|docstrings"]),
        (["train", *TINY, "data=text", "data.path={lines}"], ["no dev queries to score", "eval=sts"]),
        (["train", *TINY, "data=text", "data.path={lines}", "eval=sts"], ["hub" , "eval.sts.path"]),
        (["train", "encoder=bert_base", "encoder.path=/no/model", "data=pairs", "data.path={pairs}", "data.batch_size=4"], ["/no/model: no such folder"]),
        (["train", "encoder=bert_base", "data=pairs", "data.path={pairs}", "data.batch_size=4"], ["bert-base-uncased: no such folder"]),
        (["train", *TINY, "data=pairs", "data.path={pairs}", "data.batch_size=400"], ["do not fill one batch of 400"]),
        (["train", *TINY, "data=pairs", "data.path={pairs}", "optim.schedule=wavy"], ["optim.schedule=wavy"]),
        (["train", "-m", "hydra/sweeper=optuna", *TINY, "data=pairs", "data.path={pairs}", "select=last", "optim.lr=1e-5,1e-4"], ["dev has to score the trials"]),
        (["train", "resume=/no/run"], ["not a run folder"]),
        (["evaluate", "encoder=tiny", "eval=geometry", "eval.geometry.path={beir}"], ["no BEIR data set"]),
        (["evaluate", "encoder=tiny", "eval=retrieval"], ["no test queries"]),
        (["evaluate", "encoder=tiny", "eval=bitext", "split=dev"], ["what eval names (bitext) has nothing to score on dev"]),
        (["train", *TINY, "data=pairs", "data.path={pairs}", "init=outputs/x", "pooling=cls"], ["pooling=cls: with init= the model brings its pooling"]),
        (["train", *TINY, "data=pairs", "data.path={pairs}", "init=outputs/x", "embedder.normalize=false"], ["embedder.normalize=false: with init="]),
        (["evaluate", "model=/no/model", "eval=retrieval"], ["/no/model: no such folder"]),
        (["evaluate", "model=a/b_…"], ["… stands for"]),
        (["evaluate", "encoder=tiny", "data.path={pairs}"], ["Choose one first: data=beir|docstrings|"]),
        (["train", "pooling=[mean,cls]"], ["pooling takes one option", "pooling=mean,cls is a run of each"]),
        (["train", *TINY, "data=pairs", "data.path={pairs}", "data.columns.anchor=anchr"], ["row 1: no column 'anchr'; did you mean 'anchor'?; found: anchor, positive"]),
        (["evaluate", "eval=retrieval"], ["give one of model="]),
        (["reproduce", "/no/run"], ["not a run folder"]),
        (["reproduce", "/no/run", "speed=1"], ["'speed=1' is not understood"]),
        (["fly"], ["error: no verb 'fly'"]),
    ],
)  # fmt: skip
def test_one_clear_message(arguments, expected, tmp_path, pairs, monkeypatch, capsys):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "lines.txt").write_text("".join(f"line {i}\n" for i in range(70)))
    (tmp_path / "bad.jsonl").write_text(
        json.dumps({"anchor": "a", "positive": "b"}) + "\n" + json.dumps({"anchor": "a"}) + "\n"
    )
    names = {
        "empty": tmp_path / "empty.txt",
        "bad": tmp_path / "bad.jsonl",
        "lines": tmp_path / "lines.txt",
        "pairs": pairs,
        "beir": tmp_path,
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["unitsphere", *(a.format(**names) for a in arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr().err
    assert end.value.code == 2, printed
    for text in expected:
        assert text in printed
    assert "Traceback" not in printed and printed.count("error:") == 1


def test_verbs_explain_themselves():
    for arguments in (["--help"], ["train", "--help"], ["evaluate", "--help"], ["reproduce", "--help"]):
        done = command(*arguments)
        assert "unitsphere" in done.stdout and not done.stderr


@pytest.mark.slow
def test_evaluate_scores_a_model_on_its_own_and_on_other_data(tmp_path, pairs):
    line = ["train", *TINY, "data=pairs", f"data.path={pairs}", "data.batch_size=8", "name=x", f"outputs={tmp_path}"]
    command(*line)
    run = next((tmp_path / "x").iterdir())
    trained = json.loads((run / "metrics.json").read_text())
    done = command("evaluate", f"model={run}", f"outputs={tmp_path}")
    assert "pairs/mrr@10" in done.stdout
    folder = next((tmp_path / "evaluations").rglob("metrics.json"))
    assert json.loads(folder.read_text()) == {k: v for k, v in trained.items() if k.startswith("test/")}
    assert (folder.parent / "scores" / "test" / "pairs.parquet").exists()


def test_what_is_said_keeps_brackets_and_long_paths_whole(capsys):
    said = f"eval=[retrieval,geometry] in /{'long/' * 40}folder"
    show(said)
    assert capsys.readouterr().out == said + "\n"


def test_local_paths_become_absolute_wherever_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "english"):
        (tmp_path / name).touch()
    config = OmegaConf.create(
        {
            "path": ["a.txt", "owner/name:train"],
            "parts": [{"path": "b.txt", "name": "english"}, {"init": ["a.txt"]}],
            "files": {"test": ["a.txt", "b.txt"], "train": "b.txt", "dev": None},
            "languages": ["english"],
            "scorer": {"path": "a.txt"},
        }
    )
    make_absolute(config)
    a, b = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    assert OmegaConf.to_container(config) == {
        "path": [a, "owner/name:train"],
        "parts": [{"path": b, "name": "english"}, {"init": [a]}],
        "files": {"test": [a, b], "train": b, "dev": None},
        "languages": ["english"],
        "scorer": {"path": a},
    }


@pytest.mark.parametrize(
    ("typed", "flags"),
    [
        (["seed=1", "--info"], ["--info"]),
        (["seed=1", "-cd", "conf", "~logger", "-m"], ["-cd", "conf", "-m"]),
        (["--cfg", "job", "seed=1"], ["--cfg", "job"]),
        (["data.path='a b'", "--config-dir=conf", "seed=1", "seed=1"], ["--config-dir=conf"]),
    ],
)
def test_flags_may_stand_anywhere(typed, flags):
    assert divided(typed) == (flags, [argument for argument in typed if argument not in flags])


def test_flags_that_say_different_things_to_do_are_refused():
    with pytest.raises(UsageError, match="--multirun --cfg: one of them"):
        divided(["-m", "seed=1,2", "--cfg", "job"])
