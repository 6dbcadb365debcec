"""Hydra's sweeper over a current Optuna. It lies in `hydra_plugins` because Hydra takes sweepers from nowhere else.

Papers: Akiba et al. 2019, Optuna, https://arxiv.org/abs/1907.10902; Bergstra et al. 2011, its sampler (TPE)
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from unitsphere.errors import UsageError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

STUDY = "sweep"


def storage(folder: Path) -> Any:
    """Where a sweep's trials are: a journal in its folder, which several processes write."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(folder / "optuna.log")))


class OptunaSweeper(Sweeper):
    """Proposes cells, `at_once` at a time, from what earlier ones scored on dev.

    Args:
        trials: In all, those of an earlier, cut sweep in the same folder included.
        at_once: Proposed together and handed to the launcher together.
        sampler: Configuration of Optuna's sampler. To its seed the number of earlier trials is added, so that a sweep
            that goes on does not propose again what it proposed at first.
        pruner: Configuration of Optuna's pruner; it is asked at each look at dev.
        trial: The number of the trial that a cell is; given to it by this class.
        params: Key -> what it may be, as on the command line.
    """

    def __init__(
        self,
        trials: int,
        at_once: int,
        sampler: DictConfig,
        pruner: DictConfig,
        trial: int | None = None,
        params: Mapping[str, str] | None = None,
    ):
        self.trials, self.at_once, self.sampler, self.pruner = trials, at_once, sampler, pruner
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> "Study":
        """Run trials until there are enough; those that a kill left unfinished come first.

        Raises:
            UsageError: Optuna is not installed.
        """
        try:
            import optuna
        except ModuleNotFoundError:
            raise UsageError(
                "hydra/sweeper=optuna needs Optuna, which is the extra `optuna`: pip install optuna"
            ) from None

        assert self.config is not None and self.launcher is not None and self.hydra_context is not None  # by setup
        if self.config.select == "last":
            raise UsageError("hydra/sweeper=optuna: dev has to score the trials, and select=last looks at none of it")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        typed = [f"{key}={value}" for key, value in self.params.items()] + arguments
        parsed = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(typed)
        space = {o.get_key_element(): distribution(o) for o in parsed if o.is_sweep_override()}
        fixed = [f"{o.get_key_element()}={o.get_value_element_as_str()}" for o in parsed if not o.is_sweep_override()]
        study = optuna.create_study(
            storage=storage(folder),
            study_name=STUDY,
            load_if_exists=True,
            direction="maximize" if self.config.select_mode == "max" else "minimize",
            pruner=instantiate(self.pruner),
        )
        seed = self.sampler.get("seed")
        study.sampler = instantiate(self.sampler, **({} if seed is None else {"seed": seed + len(study.trials)}))
        for batch in self._batches(study, space):
            cells = [
                [*fixed, *(f"{key}={value}" for key, value in params.items()), f"hydra.sweeper.trial={number}"]
                for number, params in batch
            ]
            self.validate_batch_is_legal(cells)
            for (number, _), result in zip(batch, self.launcher.launch(cells, batch[0][0]), strict=True):
                value, pruned = float(result.return_value), study.trials[number].user_attrs.get("pruned", False)
                if isnan(value):
                    state = optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.FAIL
                    study.tell(number, state=state)
                else:
                    study.tell(number, value)
        _say(study)
        return study

    def _batches(
        self, study: "Study", space: "Mapping[str, BaseDistribution]"
    ) -> Iterator[Sequence[tuple[int, dict[str, Any]]]]:
        """(number, parameters) of the trials to run together."""
        unfinished = [(t.number, dict(t.params)) for t in study.trials if not t.state.is_finished()]
        for i in range(0, len(unfinished), self.at_once):
            yield unfinished[i : i + self.at_once]
        while (left := self.trials - len(study.trials)) > 0:
            asked = [study.ask(dict(space)) for _ in range(min(left, self.at_once))]
            yield [(trial.number, dict(trial.params)) for trial in asked]


def _say(study: "Study") -> None:
    from optuna.trial import TrialState

    from unitsphere.report.table import show

    done, pruned = (study.get_trials(states=[state]) for state in (TrialState.COMPLETE, TrialState.PRUNED))
    if done:
        best = " ".join(f"{key}={value}" for key, value in study.best_params.items())
        show(f"best on dev of {len(study.trials)} trials, {len(pruned)} of them pruned: {study.best_value:.4f}: {best}")


def distribution(override: Override) -> "BaseDistribution":
    """What Optuna draws a key from: `a,b` and choice(a,b) are categories, range(a,b,step) are integers below b,
    interval(a,b) is continuous, and tag(log,interval(a,b)) logarithmic."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None  # Hydra's grammar demands both
        return FloatDistribution(float(value.start), float(value.end), log="log" in value.tags)
    if isinstance(value, RangeSweep) and isinstance(value.start, int) and isinstance(value.stop, int):
        return IntDistribution(value.start, value.stop - 1, step=int(value.step))
    assert isinstance(value, ChoiceSweep | RangeSweep)
    return CategoricalDistribution(list(override.sweep_string_iterator()))
