"""Mining of hard negatives."""

from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig

from unitsphere.bench.meter import forget_peak, peak
from unitsphere.bench.peak import synchronized
from unitsphere.cli.mine import mine


def measure(config: DictConfig) -> dict[str, float]:
    """The whole of `unitsphere mine`: embedding, searching, filtering, writing.

    Args:
        config: Of mine, resolved.
    """
    with TemporaryDirectory() as place:
        config.outputs = place
        forget_peak()
        began = synchronized()
        run = mine(config)
        seconds = synchronized() - began
        with (Path(run.folder) / "negatives.jsonl").open(encoding="utf-8") as lines:
            pairs = sum(1 for _ in lines)
    return {"pairs/s": pairs / seconds, "seconds": seconds, "peak MiB": peak()}
