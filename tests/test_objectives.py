"""Every loss option through a whole run on the tiny encoder, composed as a user would; and chains of runs."""

import json

import pytest
import torch

from conftest import command, composed
from unitsphere import artefact, paths
from unitsphere.cli.chain import last_of_each_key
from unitsphere.cli.train import start
from unitsphere.encoders.cross_encoder import CrossEncoder
from unitsphere.encoders.language_model import generator
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.runs import Run
from unitsphere.training.run import check_needs, train

COLUMNS = ("+data.columns.negative=negative", "+data.columns.label=label", "+data.columns.score=score")
TEACHER = "loss.teacher.path={bert}"
MORE = {
    "diffcse": ["loss.inner.terms.rtd.generator.path={mlm}"],
    "distil_cosine": [TEACHER],
    "distil_features": ["loss.terms.features.teacher.path={bert}"],
    "distil_mse": [TEACHER],
    "distil_multilingual": [TEACHER],
    "distil_relational": [TEACHER],
    "margin_mse": ["loss.teacher=null"],
    "matryoshka": ["loss.dims=[32,8]"],
    "mntp": ["encoder=hub", "encoder.path={llama}"],
    "queue": ["loss.size=32", "loss.momentum=0.9"],
    "supcon": ["sampler=class_balanced"],
}
LOSSES = sorted(f.stem for f in (paths.conf() / "loss").glob("*.yaml"))


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A data file with every column, a tiny BERT, one with a language-model head, a tiny Llama."""
    from test_encoders import llama as make_llama
    from unitsphere.encoders.language_model import with_head

    folder = tmp_path_factory.mktemp("material")
    rows = [
        {
            "anchor": f"number {i} of {i % 7}", "positive": f"it is {i} or {i % 5}", "negative": f"not {i + 1}",
            "label": str(i % 6), "score": (i % 3) / 2,
        }
        for i in range(64)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = tiny()
    encoder.model.save_pretrained(folder / "bert")
    encoder.tokenizer.save_pretrained(folder / "bert")
    torch.manual_seed(0)
    with_head(encoder).save_pretrained(folder / "mlm")
    encoder.tokenizer.save_pretrained(folder / "mlm")
    make_llama.__wrapped__(folder)
    return folder


def run_of(material, outputs, *typed, columns=COLUMNS) -> Run:
    filled = [o.format(**{name: material / name for name in ("bert", "mlm", "llama")}) for o in typed]
    config = composed(*last_of_each_key([
        "encoder=tiny", "data=pairs", *columns, f"data.path={material / 'rows.jsonl'}", "data.batch_size=8",
        "eval=none", "select=last", "trainer.max_steps=3", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1",
        f"outputs={outputs}", *filled,
    ]))  # fmt: skip
    run = start(config, [], {})
    train(run.config, run)
    return run


@pytest.mark.parametrize("loss", LOSSES)
def test_an_objective_runs(loss, material, tmp_path):
    run = run_of(material, tmp_path, f"loss={loss}", *MORE.get(loss, []))
    assert run.info["status"] == "done" and run.info["best_step"] == 3
    if loss.startswith("cross_encoder"):
        made = CrossEncoder(str(run.folder))([("number 3", "it is 3")])
    else:
        made = artefact.load(run.folder).encode(["number 3"])
    assert torch.isfinite(torch.from_numpy(made)).all()
    curve = (run.folder / "metrics.csv").read_text()
    assert "train/loss" in curve and "nan" not in curve


@pytest.mark.parametrize("loss", ["cross_encoder", "distil_mse", "diffcse"])
def test_an_objective_runs_with_weights_of_16_bits(loss, material, tmp_path):
    run = run_of(material, tmp_path, f"loss={loss}", *MORE.get(loss, []), "trainer.precision=bf16-true")
    assert run.info["status"] == "done" and "nan" not in (run.folder / "metrics.csv").read_text()


@pytest.mark.parametrize("inner", ["simcse", "supcon", "triplet", "nt_xent", "cosent"])
def test_matryoshka_wraps_any_loss(inner, material, tmp_path):
    run = run_of(material, tmp_path, "loss=matryoshka", f"loss@loss.inner={inner}", "loss.dims=[32,8]")
    assert "train/dim8" in (run.folder / "metrics.csv").read_text()


def test_truncated_vectors_are_scored_beside_whole_ones(material, tmp_path):
    run = run_of(
        material, tmp_path, "loss=infonce", "eval=[retrieval,truncation]", "select=null", "eval.truncation.dims=[32,4]",
        columns=(),
    )  # fmt: skip
    metrics = run.metrics
    for stage in ("before", "test"):
        assert metrics[f"{stage}/pairs_dim32/mrr@10"] == pytest.approx(metrics[f"{stage}/pairs/mrr@10"])
        assert metrics[f"{stage}/pairs_dim4/mrr@10"] != metrics[f"{stage}/pairs/mrr@10"]
    assert (run.folder / "scores" / "test" / "pairs_dim4.parquet").exists()


def test_the_cache_changes_no_number_that_matters(material, tmp_path):
    whole, cached = (
        run_of(
            material,
            tmp_path / str(tokens),
            "loss=infonce",
            "encoder.dropout=0",
            "trainer.chunks=1",
            f"trainer.cache_tokens={tokens}",
        )
        for tokens in ("null", 40)
    )
    a, b = (artefact.load(run.folder).encode(["number 3", "it"]) for run in (whole, cached))
    assert abs(a - b).max() < 1e-5


def test_networks_that_a_loss_loads_are_in_training_mode(material, tmp_path, monkeypatch):
    from unitsphere.losses.rtd import ReplacedTokenDetection

    modes, edit = [], ReplacedTokenDetection.edit
    monkeypatch.setattr(
        ReplacedTokenDetection, "edit", lambda self, tokens: modes.append(self.generator.training) or edit(self, tokens)
    )
    for dropout in ("true", "false"):
        run_of(
            material, tmp_path / dropout, "loss=diffcse", *MORE["diffcse"], "trainer.max_steps=1", "trainer.chunks=1",
            f"loss.inner.terms.rtd.generator_dropout={dropout}",
        )  # fmt: skip
    assert modes == [True, False]


def test_an_earlier_encoder_is_saved_without_the_head_of_the_last_step(material, tmp_path):
    run = run_of(
        material, tmp_path, "loss=mlm", "eval=retrieval", "select=null", "optim.lr=10", "callbacks.selection.every=1",
        columns=(),
    )  # fmt: skip
    assert run.info["best_step"] < 3
    with pytest.raises(UsageError, match="no language-model head"):
        generator(str(run.folder))


def test_local_paths_anywhere_in_the_saved_configuration_are_absolute(material, tmp_path, monkeypatch):
    monkeypatch.chdir(material)
    run = run_of(material, tmp_path, "loss=distil_mse", "loss.teacher.path=bert")
    assert run.config.loss.teacher.path == str(material / "bert")


def test_nothing_chooses_where_nothing_is_scored(material, tmp_path):
    with pytest.raises(UsageError, match="select=last"):
        run_of(material, tmp_path, "loss=simcse", "select=null")


def test_a_loss_that_the_data_cannot_feed_names_data_that_can():
    from unitsphere.losses.supcon import SupCon

    with pytest.raises(UsageError, match=r"no label.*data=docstrings\|labelled"):
        check_needs(SupCon(), ["anchor"])


@pytest.mark.slow
def test_a_chain_goes_on_where_it_was_cut(material, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "stages:\n"
        "  mlm: [loss=mlm, select=last, eval=none]\n"
        "  contrastive: [loss=infonce, encoder=hub, 'encoder.path={mlm}', eval=retrieval]\n"
        "  negatives: [mine, 'model={contrastive}', filter=none, audit=0]\n"
        "  hard: [loss=triplet, 'init={contrastive}', encoder=hub, preparation=mined, eval=retrieval,\n"
        "    'preparation.mined.path={negatives}/negatives.jsonl']\n"
    )
    typed = [
        "encoder=tiny", "data=pairs", f"data.path={material / 'rows.jsonl'}", "data.batch_size=8", "trainer.max_steps=2",
        "trainer.accelerator=cpu", f"outputs={tmp_path}/out",
    ]  # fmt: skip
    cut = command(
        "chain", tmp_path / "mine.yaml", *typed[1:], "mlm.encoder=tiny", "contrastive.data.batch_size=1", check=False
    )
    assert cut.returncode == 2 and "data.batch_size=1" in cut.stderr and "stage contrastive failed" in cut.stderr
    (folder,) = (tmp_path / "out" / "chains" / "mine").iterdir()
    stages = folder / "chain.yaml"
    stages.write_text(stages.read_text().replace("data.batch_size=1", "data.batch_size=4"))
    done = command("chain", f"resume={folder}")
    assert "stage mlm" not in done.stdout and "contrastive" in done.stdout and "pairs/mrr@10" in done.stdout
    (mlm,) = (folder / "mlm").iterdir()
    *_, contrastive = sorted((folder / "contrastive").iterdir())
    assert Run.open(contrastive).config.encoder.path == str(mlm)
    (hard,) = (folder / "hard").iterdir()
    assert Run.open(hard).info["preparation"][0]["changed"] > 0 and "hard" in done.stdout


def test_an_unknown_chain_is_named(tmp_path):
    done = command("chain", "nothing", check=False, cwd=tmp_path)
    assert done.returncode == 2 and "domain_adaptation" in done.stderr
    assert "domain_adaptation" in command("chain", "--help").stdout
