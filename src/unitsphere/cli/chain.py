"""`unitsphere chain`: several runs in a row, each from the model of the one before, in one folder and one table.

A stage is an ordinary run of `unitsphere train`, or of the verb that its list begins with; there is no second training
path. A chain that was cut goes on at the stage that was cut.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from unitsphere import paths
from unitsphere.cli import hydra_app
from unitsphere.cli.help import first_comment
from unitsphere.errors import UsageError
from unitsphere.runs import Run, stamped, write

SHARED = ("data", "preparation", "seed")  # what a stage that does not train takes of the overrides for all
BEGINS = ("init", "encoder.path")  # what a stage begins with; one that says so itself takes neither of those for all

PAGE = """unitsphere chain NAME [key=value …] [STAGE.key=value …]
unitsphere chain resume=FOLDER

Runs the stages of conf/chain/NAME.yaml, or of NAME where that is a file, one after another. key=value goes to every
stage that trains, data, preparation and seed to one that mines too, STAGE.key=value to that stage. init and
encoder.path go only to a stage that does not say itself what it begins with. FOLDER is that of a chain which was cut.

  unitsphere chain domain_adaptation data=docstrings mlm.trainer.max_steps=200 contrastive.trainer.max_steps=60
  unitsphere chain domain_adaptation data=pairs data.path=tickets.csv seed=2
  unitsphere chain resume=outputs/chains/domain_adaptation/chain_20261124-212000

Chains:
"""


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    if not arguments or arguments[0] in ("-h", "--help"):
        listed = [f"  {f.stem}  {first_comment(f)}\n" for f in sorted((paths.conf() / "chain").glob("*.yaml"))]
        sys.stdout.write(PAGE + "".join(listed))
        sys.exit(0 if arguments else 2)
    first, *typed = arguments
    if first.startswith("resume="):
        folder = Path(first.removeprefix("resume=")).expanduser()
        if typed or not (folder / "chain.yaml").exists():
            raise UsageError(
                f"{' '.join(arguments)}: resume= takes the folder of a chain (with chain.yaml), and nothing else."
            )
    else:
        folder = begin(first, typed)
    stages = OmegaConf.to_container(OmegaConf.load(folder / "chain.yaml"))
    assert isinstance(stages, dict)
    runs = carry_out(folder, {str(name): list(overrides) for name, overrides in stages.items()})
    from unitsphere.report import table

    scored = {name: run.metrics for name, run in runs.items() if any(k.startswith("test/") for k in run.metrics)}
    if scored:
        table.show(table.stages(scored))
    table.show(str(folder))


def begin(name: str, typed: Sequence[str]) -> Path:
    """Make the chain's folder, with chain.yaml: stage -> overrides.

    Raises:
        UsageError: There is no such chain, or a stage does not compose.
    """
    file = paths.conf() / "chain" / f"{name}.yaml"
    file = file if file.exists() else Path(name).expanduser()
    if not file.is_file():
        known = ", ".join(f.stem for f in sorted((paths.conf() / "chain").glob("*.yaml")))
        raise UsageError(f"no chain {name!r}; known: {known}; or name a file with `stages:`")
    try:
        read: Any = OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, ValueError, YAMLError) as error:
        raise UsageError(f"{file}: no YAML ({error})") from error
    stages = read.get("stages") if isinstance(read, dict) else None
    if not isinstance(stages, dict) or not all(isinstance(overrides, list) for overrides in stages.values()):
        raise UsageError(f"{file}: `stages:` should map a stage's name to a list of overrides.")
    own: dict[str, list[str]] = {stage: [] for stage in stages}
    everywhere = []
    for override in typed:
        bare = override.lstrip("+~")
        sign = override[: len(override) - len(bare)]
        stage, _, rest = bare.partition(".")
        if stage in stages:
            own[stage].append(sign + rest)
        else:
            everywhere.append(override)
    given = {
        stage: last_of_each_key([*overrides, *shared(overrides, everywhere), *own[stage]])
        for stage, overrides in stages.items()
    }
    check(given)
    outputs = next((o.removeprefix("outputs=") for o in everywhere if o.startswith("outputs=")), "outputs")
    folder = Run.create(Path(outputs) / "chains" / file.stem, stamped("chain")).folder.resolve()
    kept = {stage: [o for o in overrides if not o.startswith("outputs=")] for stage, overrides in given.items()}
    write(folder / "chain.yaml", OmegaConf.to_yaml(OmegaConf.create(kept)))
    return folder


def shared(stage: Sequence[str], everywhere: Sequence[str]) -> list[str]:
    """What a stage takes of the overrides that are for all: one that does not train knows SHARED only, and one that
    says what it begins with keeps to that."""
    if verb(stage) == "train":
        left_out = BEGINS if any(key(o) in BEGINS for o in stage) else ()
        own = any(key(o) == "init" for o in stage)
        return [o for o in everywhere if key(o) not in left_out and not (own and brought(o))]
    return [o for o in everywhere if group(o) in SHARED]


def key(override: str) -> str:
    """What an override changes: +data@data.sources.a=b -> data@data.sources.a."""
    return override.lstrip("+~").partition("=")[0]


def group(override: str) -> str:
    """The group, or first part of the key, that an override changes: +data@data.sources.a=b, data.path=c -> data."""
    return key(override).partition(".")[0].partition("@")[0]


def brought(override: str) -> bool:
    """Whether an override says what `init` brings with it."""
    return group(override) in ("pooling", "embedder") or key(override) in ("encoder.path", "encoder.max_length")


def check_init(init: str | None, overrides: Sequence[str]) -> None:
    """Raises:
    UsageError: A run begins with a model, and something was typed that this brings with it.
    """
    typed = [override for override in overrides if brought(override)]
    if init is not None and typed:
        raise UsageError(
            f"{' '.join(typed)}: with init= the model brings its pooling, projection, prompts and longest input; leave "
            "it out, or begin with the encoder alone: encoder=hub encoder.path=…"
        )


def verb(stage: Sequence[str]) -> str:
    """What a stage runs."""
    return stage[0] if stage and "=" not in stage[0] else "train"


def last_of_each_key(overrides: Sequence[str]) -> list[str]:
    """Overrides where what comes later wins; Hydra refuses a group that is chosen twice."""
    return list({key(o): o for o in overrides}.values())


def command(stage: str, overrides: Sequence[str], folder: Path, done: Mapping[str, Path]) -> list[str]:
    """The command of a stage; `{name}` in an override becomes the folder of that stage's run."""
    filled = [hydra_app.filled(o, {name: str(of_run) for name, of_run in done.items()}) for o in overrides]
    given = [*filled[verb(filled) != "train" :], hydra_app.quoted(f"outputs={folder}"), f"name={stage}"]
    return [sys.executable, "-m", "unitsphere", verb(filled), *given]


def check(stages: Mapping[str, Sequence[str]]) -> None:
    """Compose every stage, so that what does not fit is known before the first one has run for hours.

    Raises:
        UsageError: It names the stage and says what its command would have said.
    """
    done: dict[str, Path] = {}
    for stage, overrides in stages.items():
        try:
            check_init(next((o for o in overrides if key(o) == "init"), None), overrides)
        except UsageError as error:
            raise UsageError(f"stage {stage}: {error}") from error
        line = [*command(stage, overrides, Path("outputs"), done), "--cfg", "job", "--resolve"]
        composed = subprocess.run(line, capture_output=True, text=True)
        if composed.returncode:
            raise UsageError(f"stage {stage}: {composed.stderr.strip().removeprefix('error: ')}")
        done[stage] = Path(f"/{stage}")


def carry_out(folder: Path, stages: Mapping[str, Sequence[str]]) -> dict[str, Run]:
    """Run every stage that is not done yet.

    Raises:
        UsageError: A stage failed; what it said stands above.
    """
    runs: dict[str, Run] = {}
    for stage, overrides in stages.items():
        known = sorted((folder / stage).glob("*/run.json"))
        run = Run.open(known[-1].parent) if known else None
        if run is None or run.info["status"] != "done":
            sys.stdout.write(f"stage {stage}\n")
            sys.stdout.flush()
            started = run is not None and (run.folder / "checkpoints" / "last.ckpt").exists()
            line = command(stage, overrides, folder, {name: done.folder for name, done in runs.items()})
            if run is not None and started:
                line[4:] = [hydra_app.quoted(f"resume={run.folder}")]
            ended = subprocess.run(line)
            if ended.returncode:
                raise UsageError(f"stage {stage} failed; mend it and go on with: unitsphere chain resume={folder}")
            run = Run.open(sorted((folder / stage).glob("*/run.json"))[-1].parent)
        runs[stage] = run
    return runs
