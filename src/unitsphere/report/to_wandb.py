"""What a finished run's folder holds, for the Weights & Biases run that logged its curves."""

import pandas as pd
import wandb
from wandb.sdk.wandb_run import Run as WandbRun

from unitsphere.report.pictures import pictures
from unitsphere.report.table import compared
from unitsphere.runs import MODEL_IS_THERE, Run


def finish(run: Run) -> None:
    """Send summary, tables, pictures and the page, and end their run: the next one of this process is another.

    Does nothing where no run of theirs is going on.
    """
    if wandb.run is None:
        return
    done = run.info["status"] in MODEL_IS_THERE
    if done:
        _send(wandb.run, run)
    wandb.finish(exit_code=0 if done else 1)


def _send(theirs: WandbRun, run: Run) -> None:
    info, metrics = run.info, run.metrics
    facts = ("steps", "best_step", "wall_seconds", "peak_memory_gib", "parameters")
    theirs.summary.update(metrics | {key: info[key] for key in facts})
    columns: list[str | int] = ["metric", "before", "best", "best - before", "last"]
    tables = {"scores": wandb.Table(columns=columns, data=[list(row) for row in compared(metrics)])}
    for file in sorted((run.folder / "scores" / "test").glob("*-worst.parquet")):
        tables[f"worst/{file.stem.removesuffix('-worst')}"] = wandb.Table(dataframe=pd.read_parquet(file))
    images = {f"pictures/{name}": wandb.Image(drawn) for name, drawn in pictures(run).items()}
    page = run.folder / "report.html"
    shown = {"report": wandb.Html(str(page))} if page.exists() else {}
    theirs.log({**tables, **images, **shown, "trainer/global_step": info["steps"]})
