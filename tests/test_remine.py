"""Mining while training: by the model as it is, for the rows that come next, and the same after a cut."""

import copy
import json

import numpy as np
import pytest
import pytorch_lightning as pl

from conftest import composed
from unitsphere.cli.train import start
from unitsphere.embedder import Embedder
from unitsphere.errors import UsageError
from unitsphere.search.dense import unit
from unitsphere.training.remine import Remine
from unitsphere.training.run import train


def run(pairs, outputs, *more):
    return start(
        composed(
            "encoder=tiny", "loss=infonce", "data=pairs", f"data.path={pairs}", "data.batch_size=16", "trainer.max_steps=10",
            "optim.lr=0.003", "trainer.log_every_n_steps=1", "callbacks=[default,remine]", "callbacks.remine.every=4",
            "callbacks.selection.save_every=1", "trainer.accelerator=cpu", "trainer.threads=1", f"outputs={outputs}",
            "~callbacks.remine.filters.margin", "callbacks.remine.documents=null", *more,
        ), [], {},
    )  # fmt: skip


class Watch(pl.Callback):
    """Keeps every batch's texts, and the embedder as it was at some steps; cuts a run short where it is told to."""

    def __init__(self, stop=None):
        self.stop, self.batches, self.models = stop, {}, {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        step = trainer.global_step
        self.batches[step] = batch
        if step % 4 == 0:
            self.models[step] = copy.deepcopy(module.embedder)
        if step == self.stop:
            raise RuntimeError("cut")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remine")
    lines = [{"anchor": f"number {i} of {i % 7}", "positive": f"it is {i} or {i % 5}"} for i in range(120)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    watch = Watch()
    done = run(folder / "rows.jsonl", folder / "out")
    train(done.config, done, [watch])
    return folder, done, watch


def test_each_batch_has_the_negatives_of_the_last_mining(whole):
    _, done, watch = whole
    assert sorted(f.name for f in (done.folder / "mined").glob("*.jsonl")) == [f"step_{n}.jsonl" for n in (0, 4, 8)]
    for step, batch in watch.batches.items():
        file = done.folder / "mined" / f"step_{step // 4 * 4}.jsonl"
        mined = dict(json.loads(line) for line in file.read_text().splitlines())
        expected = [text for row in batch.row_ids.tolist() for text in mined[row]]
        assert batch.texts["negative"] == expected and len(expected) == 16
        owners = batch.negative_rows.tolist()
        assert all(text != batch.texts["positive"][of] for of, text in zip(owners, expected, strict=True))


def test_they_are_what_the_model_of_that_step_finds_nearest(whole):
    _, _, watch = whole
    changed = 0
    for step in (0, 4, 8):
        model, batch = watch.models[step], watch.batches[step]
        texts = sorted({t for b in watch.batches.values() for t in b.texts["positive"]})
        d = unit(model.embed(texts, "document", 64))
        for i, anchor in enumerate(batch.texts["anchor"]):
            q = unit(model.embed([anchor], "query", 64))[0]
            ranked = [texts[k] for k in np.argsort(-(d @ q)) if texts[k] != batch.texts["positive"][i]]
            chosen = batch.texts["negative"][i]
            assert ranked.index(chosen) == 0 or d[texts.index(chosen)] @ q >= d[texts.index(ranked[0])] @ q - 1e-5
            first = watch.models[0]
            changed += chosen != max(
                (t for t in texts if t != batch.texts["positive"][i]),
                key=lambda t: float(unit(first.embed([t], "document", 64))[0] @ unit(first.embed([anchor], "query", 64))[0]),
            ) if step == 8 else 0  # fmt: skip
    assert changed > 0  # training has moved what is near


@pytest.mark.parametrize("stop", [4, 6])
def test_a_run_that_was_cut_at_a_mining_or_between_two_goes_on_with_the_same_numbers(whole, stop):
    folder, done, _ = whole
    cut = run(folder / "rows.jsonl", folder / "cut")
    with pytest.raises(RuntimeError, match="cut"):
        train(cut.config, cut, [Watch(stop)])
    assert train(cut.config, cut) == done.metrics


def test_a_run_that_goes_on_with_what_was_mined_does_not_mine_it_again(tmp_path, monkeypatch):
    """Where gradients are added up, several batches end at the step that it was cut at."""

    class Stub:
        global_step, default_root_dir, estimated_stepping_batches = 4, tmp_path, 10

    class Rows:
        given = None

        def set_negatives(self, mined):
            self.given = mined

    callback, trainer = Remine({}, {}, every=4), Stub()
    trainer.train_dataloader = Rows()
    (tmp_path / "mined").mkdir()
    ends = "one\u2028text\x85of several lines"
    (tmp_path / "mined" / "step_4.jsonl").write_text(json.dumps([7, [ends]], ensure_ascii=False) + "\n")
    mined_at = []
    monkeypatch.setattr(callback, "_mine", lambda trainer, module: mined_at.append(trainer.global_step))
    callback.on_train_start(trainer, None)
    for step in (4, 4, 5, 8):
        trainer.global_step = step
        callback.on_train_batch_end(trainer, None, None, None, 0)
    assert trainer.train_dataloader.given == {7: [ends]} and mined_at == [8]


def test_texts_are_mined_under_their_rows_instructions(tmp_path, monkeypatch):
    lines = [{"anchor": f"number {i}", "positive": f"it is {i}", "say": f"find {i % 2}: "} for i in range(120)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said, embed = {}, Embedder.embed

    def recording(self, texts, role, max_length=None, prompt=None):
        said.update({(role, text): prompt for text in texts})
        return embed(self, texts, role, max_length, prompt)

    monkeypatch.setattr(Embedder, "embed", recording)
    more = ("+data.columns.anchor_instruction=say", "eval=none", "select=last", "trainer.max_steps=1")
    done = run(tmp_path / "rows.jsonl", tmp_path, *more)
    train(done.config, done)
    queries = {text: prompt for (role, text), prompt in said.items() if role == "query"}
    assert queries and all(prompt == f"find {int(text.split()[1]) % 2}: " for text, prompt in queries.items())
    assert {prompt for (role, _), prompt in said.items() if role == "document"} == {None}


def test_a_loss_without_negatives_says_so(whole):
    folder, *_ = whole
    other = run(folder / "rows.jsonl", folder / "other", "loss=simcse")
    with pytest.raises(UsageError, match="reads no negatives"):
        train(other.config, other)
