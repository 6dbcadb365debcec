"""One measurement in a process of its own, which has nothing of an earlier one in its memory.

`python -m unitsphere.bench.child FILE` reads what to measure from a file, and prints the numbers as its last line. What
it measures may start further ranks of itself by the same command line; they print nothing.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.utils import get_method
from omegaconf import OmegaConf

from unitsphere.errors import UsageError


def measured(call: str, config: Any, threads: int, options: Mapping[str, Any], gpus: bool = True) -> dict[str, float]:
    """What `call(config, **options)` returns in a new process with so many threads.

    Args:
        call: Dotted name of a function.
        config: A resolved configuration.
        gpus: Whether it may see this machine's GPUs.

    Raises:
        UsageError: It failed; the message is its own.
    """
    given = json.dumps([call, OmegaConf.to_container(config), threads, dict(options)])
    with TemporaryDirectory() as place:
        file = Path(place) / "given.json"
        file.write_text(given, encoding="utf-8")
        line = [sys.executable, "-m", "unitsphere.bench.child", str(file)]
        hidden = {} if gpus else {"CUDA_VISIBLE_DEVICES": ""}
        ended = subprocess.run(line, capture_output=True, text=True, env={**os.environ, **hidden})
    if ended.returncode:
        raise UsageError(f"{call}: {ended.stderr.strip()[-2000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> None:
    """Read, measure, print."""
    import torch

    from unitsphere.process import quiet

    call, config, threads, options = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(threads)
    quiet()
    try:
        numbers = get_method(call)(OmegaConf.create(config), **options)
    except UsageError as error:
        sys.exit(str(error))
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        sys.stdout.write(f"\n{json.dumps(numbers)}\n")


if __name__ == "__main__":
    main()
