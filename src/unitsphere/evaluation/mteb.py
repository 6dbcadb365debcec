"""Tasks of MTEB and C-MTEB, computed by the mteb package (the extra `mteb`), on a hub's data sets or on local folders.

Papers: Muennighoff et al. 2023, MTEB, https://arxiv.org/abs/2210.07316; Enevoldsen et al. 2025, MMTEB,
https://arxiv.org/abs/2502.13595; Xiao et al. 2024, C-MTEB, https://arxiv.org/abs/2309.07597
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import pandas as pd

from unitsphere.errors import UsageError
from unitsphere.evaluation.cached import OutOfTime
from unitsphere.types import Embed, Result, RetrievalSet


class MTEB:
    """Main score of each task, as mteb computes it, and their means over tasks and over types of task.

    Metrics are `mteb/mean_task`, `mteb/mean_task_type` (of the means over each type's tasks) and `mteb/<task>`, and
    `mteb-<task>/<measure>` for each of `measures` that the task has; a score is a mean over splits and languages. All
    measures that mteb returns are in the items. mteb is for reporting: on dev it scores the folders of `path` that
    have a dev split, and nothing of a hub's. When the time is over, the tasks that are finished are reported, without
    the means.

    Args:
        split: "dev" or "test".
        own: Not used.
        tasks: Names of tasks, e.g. STSBenchmark, whose data sets are on a hub.
        benchmark: Name of a list of tasks, e.g. "MTEB(eng, v2)", or "MTEB(cmn, v1)", which is C-MTEB.
        languages: Tasks, and of tasks in several languages the parts, in these only: ISO 639-3, with a script or
            without it (cmn, cmn-Hans).
        path: A data set in mteb's layout, or a folder of such (see mteb_folder.py).
        measures: Shown besides the main scores, by mteb's names.
        prompts: `<task>`, `<type>`, `query`, `document`, `<task>-query`, … -> text put before (see mteb_model.py).
        instruction: Where given, e.g. "Instruct: {instruction}\\nQuery: ", queries get their task's own instruction.
        max_length: Tokens kept; None is the encoder's limit.

    Raises:
        UsageError: mteb is not installed or does not know a name, nothing is chosen, or a folder is malformed.
    """

    def __init__(
        self,
        split: str,
        own: RetrievalSet | None = None,
        tasks: Sequence[str] = (),
        benchmark: str | None = None,
        languages: Sequence[str] | None = None,
        path: str | None = None,
        measures: Sequence[str] = (),
        prompts: Mapping[str, str] | None = None,
        instruction: str | None = None,
        max_length: int | None = None,
    ):
        if not (tasks or benchmark or path):
            raise UsageError(
                'eval=mteb: choose eval.mteb.tasks=[STSBenchmark,…], eval.mteb.benchmark="MTEB(eng, v2)" or '
                "eval.mteb.path=FOLDER."
            )
        try:
            import datasets
            import mteb  # noqa: F401
        except ImportError as error:
            raise UsageError(f"eval=mteb needs mteb: pip install 'unitsphere[mteb]' ({error})") from None
        from unitsphere.evaluation import mteb_folder

        logging.getLogger("mteb").setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        self.tasks = _official(tasks, benchmark, languages) if split == "test" else []
        self.tasks += mteb_folder.tasks(path, split) if path else []
        names = [task.metadata.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f"eval.mteb: {', '.join(twice)} is there twice.")
        self.measures, self.prompts = tuple(measures), dict(prompts or {})
        self.instruction, self.max_length = instruction, max_length

    def held(self) -> Mapping[str, Sequence[str]]:
        """The texts that each task scores: queries, pairs, texts of its test split; loads data that is not loaded."""
        found = {}
        for task in self.tasks:
            with _loaded(task) as parts:
                found[f"mteb-{task.metadata.name}"] = [text for part in parts for text in _texts(part)]
        return found

    def __call__(self, embed: Embed) -> Result:
        import mteb

        from unitsphere.evaluation.mteb_model import MTEBModel

        model: Any = MTEBModel(embed, "unitsphere/model", "unsaved", self.prompts, self.instruction, self.max_length)
        rows = []
        main: dict[str, float] = {}
        for task in self.tasks:
            name, kind = task.metadata.name, task.metadata.type
            try:
                with _loaded(task):
                    found = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False)
            except OutOfTime:
                if not main:
                    raise
                break
            [scored] = found.task_results
            main[name] = float(scored.get_score())
            for split, subsets in scored.scores.items():
                for subset in subsets:
                    measured = {k: float(v) for k, v in subset.items() if isinstance(v, int | float)}
                    rows += [(name, kind, split, subset["hf_subset"], *item) for item in measured.items()]
        if not main:
            return Result({}, "", {}, {})
        types = {t.metadata.name: t.metadata.type for t in self.tasks}
        items = pd.DataFrame(rows, columns=["task", "type", "split", "subset", "measure", "value"])
        return Result(
            metrics=_metrics(main, types, items, self.measures),
            primary="mteb/mean_task",
            items={"mteb": items},
            protocol=self._stamps(list(main)),
        )

    def _stamps(self, done: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The protocol of these tasks, and of all."""
        stamp = {
            "kind": "mteb",
            "version": version("mteb"),
            "similarity": "cosine",
            "max_length": self.max_length,
            "prompts": json.dumps(self.prompts, sort_keys=True, ensure_ascii=False),
            "instruction": self.instruction,
        }
        tasks = {
            task.metadata.name: {"revision": task.metadata.dataset["revision"], "subsets": list(task.hf_subsets)}
            for task in self.tasks
            if task.metadata.name in done
        }
        stopped = {"stopped": f"{len(done)} of {len(self.tasks)} tasks"} if len(done) < len(self.tasks) else {}
        return {
            "mteb": stamp | {"tasks": tasks} | stopped,
            **{f"mteb-{name}": stamp | of_task for name, of_task in tasks.items()},
        }


def _official(tasks: Sequence[str], benchmark: str | None, languages: Sequence[str] | None) -> list[Any]:
    """mteb's own tasks of these names.

    Raises:
        UsageError: mteb does not know one, or none has such a language.
    """
    import mteb

    chosen = list(languages) if languages else None
    try:
        named = [mteb.get_task(name, languages=chosen) for name in tasks]
        listed = list(mteb.get_benchmark(benchmark).tasks) if benchmark else []
    except (KeyError, ValueError) as error:
        raise UsageError(f"eval.mteb: {error.args[0]}") from None
    if chosen:
        codes = {language.partition("-")[0] for language in chosen}
        listed = [task.filter_languages(chosen) for task in listed if codes & {*task.languages}]
    if benchmark and not listed:
        raise UsageError(f"eval.mteb: {benchmark} has no task in {', '.join(chosen or [])}.")
    return named + listed


def _metrics(
    main: Mapping[str, float], types: Mapping[str, str], items: pd.DataFrame, measures: Sequence[str]
) -> dict[str, float]:
    """The means, where all tasks of `types` are there, the main scores, and further measures."""
    found = {}
    if len(main) == len(types):
        scores = pd.Series(main)
        by_type = scores.groupby([types[name] for name in scores.index]).mean()
        found = {"mteb/mean_task": float(scores.mean()), "mteb/mean_task_type": float(by_type.mean())}
    found |= {f"mteb/{name}": value for name, value in main.items()}
    kept = items[items["measure"].isin(measures)]
    means = kept.groupby("mteb-" + kept["task"] + "/" + kept["measure"], sort=False)["value"].mean()
    return found | {str(name): float(value) for name, value in means.items()}


def _parts(task: Any) -> list[Any]:
    """The tasks that a task consists of, as CQADupstack of twelve forums; of any other itself."""
    return list(task.metadata.tasks) if task.is_aggregate else [task]


@contextmanager
def _loaded(task: Any) -> Iterator[list[Any]]:
    """The parts of a task, with their data while the context is open: what was not loaded before is unloaded, as the
    data sets of a benchmark need not fit into memory together.

    Raises:
        UsageError: No hub has it, or none can be reached.
    """
    new = [part for part in _parts(task) if not part.data_loaded]
    try:
        for part in _parts(task):
            part.load_data()
    except (OSError, ValueError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"eval=mteb, task {task.metadata.name}: {said}. mteb's own tasks need a hub; data sets in local folders do "
            "not: eval.mteb.path=…"
        ) from error
    try:
        yield _parts(task)
    finally:
        for part in new:
            part.unload_data()


def _texts(task: Any) -> list[str]:
    """The texts of a loaded task's evaluation splits; of retrieval its queries."""
    found: dict[str, None] = {}
    for subset in task.dataset.values() if set(task.hf_subsets) <= task.dataset.keys() else [task.dataset]:
        for split in task.eval_splits:
            part = subset[split]
            columns = [part["queries"]["text"]] if "queries" in part else [part[c] for c in task._get_content_columns()]
            found |= dict.fromkeys(text for column in columns for text in column)
    return list(found)
