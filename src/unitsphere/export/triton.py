"""A model repository for NVIDIA Triton: the ONNX graph with dynamic batching over it.

    <name>/config.pbtxt
    <name>/1/model.onnx
    <name>/tokenizer…        for the client, which sends padded token ids; Triton puts requests of equal length together

Code: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
"""

import re
import shutil
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory

from unitsphere.errors import UsageError
from unitsphere.export.verify import same
from unitsphere.graph import INPUTS, OUTPUT, load, weights
from unitsphere.model import Model
from unitsphere.tracing import as_graph

CONFIG = Template("""name: "$name"
backend: "onnxruntime"
max_batch_size: $batch
$inputs
output [ { name: "$output", data_type: TYPE_FP32, dims: [ $dim ] } ]
dynamic_batching {
  preferred_batch_size: [ $preferred ]
  max_queue_delay_microseconds: $delay
}
instance_group [ { kind: KIND_AUTO, count: 1 } ]
""")
INPUT = 'input [ {{ name: "{}", data_type: TYPE_INT64, {} }} ]'
TOKENS = "dims: [ -1 ]"  # Triton puts the batch in front: (B, T)
NUMBER = "dims: [ 1 ] reshape: { shape: [ ] }"  # one a text, which the graph reads as (B)


class ToTriton:
    """Writes the repository; Triton itself is not needed for it.

    Args:
        name: Of the model in the repository.
        batch: Texts that Triton puts together at most.
        delay_us: Microseconds that a request may wait for others.
        tolerance: The largest difference of any number of a vector.
    """

    def __init__(self, name: str = "embedder", batch: int = 64, delay_us: int = 2000, tolerance: float = 1e-4):
        if batch < 1 or delay_us < 0:
            raise UsageError(f"to.batch={batch}, to.delay_us={delay_us}: at least 1, and at least 0, would fit.")
        self.name, self.batch, self.delay_us, self.tolerance = name, batch, delay_us, tolerance

    def __call__(self, model: Model, folder: Path) -> str:
        """Write into an empty folder, and say how near it is.

        Raises:
            UsageError: It cannot be exported, is not near enough, or the name is none that Triton takes.
        """
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise UsageError(f"to.name={self.name}: letters, digits, _, - and . would fit.")
        place = folder / self.name
        with TemporaryDirectory() as work:
            graph = as_graph(model, Path(work))
            graph.write(Path(work) / "whole")
            worst = same(model, load(Path(work) / "whole"), self.tolerance)
            (place / "1").mkdir(parents=True)
            for file in weights(graph.file):
                shutil.copyfile(file, place / "1" / file.name)
            inputs = [i.name for i in graph.session.get_inputs()]
        model.encoder.tokenizer.save_pretrained(place)
        (place / "config.pbtxt").write_text(self.config(inputs, model.dim), encoding="utf-8")
        return f"largest difference {worst:.1e}"

    def config(self, inputs: list[str], dim: int) -> str:
        """The text of config.pbtxt."""
        shapes = dict.fromkeys(INPUTS[:2], TOKENS) | {INPUTS[2]: NUMBER}
        lines = [INPUT.format(name, shapes[name]) for name in inputs]
        preferred = sorted({max(1, self.batch // 4), max(1, self.batch // 2), self.batch})
        return CONFIG.substitute(
            name=self.name,
            batch=self.batch,
            inputs="\n".join(lines),
            output=OUTPUT,
            dim=dim,
            preferred=", ".join(map(str, preferred)),
            delay=self.delay_us,
        )
