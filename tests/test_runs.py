"""Run folders: of earlier versions, and in the hands of several processes."""

import copy
import json
import platform
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from conftest import composed
from unitsphere.cli.sweep import state
from unitsphere.cli.train import RUN_OF_RANKS, joined, settle, start
from unitsphere.errors import UsageError
from unitsphere.process import processor
from unitsphere.runs import Run, cell
from unitsphere.training.run import train


def test_a_run_of_before_a_setting_was_renamed_can_be_read_where_it_was_not_set(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    for given, fits in (("null", True), ("64", False)):
        (tmp_path / "config.yaml").write_text(f"trainer: {{chunks: 4, cache_rows: {given}}}\n")
        run = Run.open(tmp_path)
        if fits:
            assert run.config == {"trainer": {"chunks": 4}}
        else:
            with pytest.raises(UsageError, match=r"cache_rows, texts a pass, which is trainer.cache_tokens now"):
                _ = run.config


def test_a_reader_keeps_nobody_from_beginning_and_takes_no_other_reader_for_the_run(tmp_path):
    run = Run.create(tmp_path, "run")
    run.note(status="running")
    stop, seen = threading.Event(), []

    def read():
        while not stop.is_set():
            seen.append(Run(run.folder).info["status"])

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(30):
            time.sleep(0.005)
            with run.lock():
                pass
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert seen.count("killed") > 0.8 * len(seen)  # `running` only where the lock was held


def test_who_comes_second_notes_nothing(tmp_path):
    """Two resumptions at once: the run is the first one's."""
    run = Run.create(tmp_path, "run")
    run.note(status="running", pid=1)
    with run.lock(), pytest.raises(UsageError, match="another process is working on this run"):
        train(composed("encoder=tiny", "loss=infonce"), run)
    assert json.loads((run.folder / "run.json").read_text()) == {"status": "running", "pid": 1}


def test_equal_cells_that_begin_at_once_are_one_and_a_half_made_one_is_made_whole(tmp_path):
    config = composed("encoder=tiny", "loss=infonce")
    settle(config)
    (tmp_path / cell(config)).mkdir()  # of a process that was killed
    begin = threading.Barrier(4)

    def start_one(_):
        begin.wait()
        return start(copy.deepcopy(config), ["loss=infonce"], {}, tmp_path).folder

    with ThreadPoolExecutor(4) as pool:
        assert {*pool.map(start_one, range(4))} == {tmp_path / cell(config)}
    (run,) = state(tmp_path).cells
    assert run.info["status"] == "created" and run.config.loss == config.loss


def test_a_cell_that_is_typed_in_two_ways_counts_for_both(tmp_path):
    config = composed("encoder=tiny", "loss=infonce")
    for _ in range(2):
        run = start(copy.deepcopy(config), ["loss=infonce", "trainer.precision=auto"], {}, tmp_path)
        run.note(status="done", wall_seconds=1)
        start(copy.deepcopy(config), ["loss=infonce", "trainer.precision=32-true"], {}, tmp_path)
    hydra = {
        "sweeper": {"_target_": "x.BasicSweeper", "params": None},
        "overrides": {"task": ["trainer.precision=auto,32-true"]},
    }
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    assert str(state(tmp_path)) == "1 of 1 cells done"


def test_processors_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "x86").write_text(
        "vendor_id\t: A\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n\nmodel\t: 2\n"
    )
    (tmp_path / "arm").write_text("processor\t: 0\nCPU part\t: 0xd0c\n")
    assert processor(tmp_path / "x86") == "AMD EPYC (family 25, model 1)"
    assert processor(tmp_path / "arm") == processor(tmp_path / "nothing") == platform.processor()


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_processes_that_something_else_has_started_are_refused(monkeypatch, variable):
    monkeypatch.delenv(RUN_OF_RANKS, raising=False)
    monkeypatch.setenv(variable, "8")
    with pytest.raises(UsageError, match=f"{variable}=8.*trainer.devices=N"):
        joined()
    monkeypatch.setenv(variable, "1")
    assert joined() is None
