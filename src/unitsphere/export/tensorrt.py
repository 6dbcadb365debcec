"""A TensorRT engine out of the ONNX graph.

Code: https://docs.nvidia.com/deeplearning/tensorrt (the Python API)
"""

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime

from unitsphere.errors import UsageError
from unitsphere.export.verify import near
from unitsphere.graph import GraphModel, load, session
from unitsphere.model import Model
from unitsphere.tracing import as_graph

PROVIDER = "TensorrtExecutionProvider"


class ToTensorRT:
    """Has ONNX Runtime's TensorRT provider build an engine for batches up to `batch` and texts up to the longest, and
    keeps graph and engine together: the engine fits this GPU and this version of TensorRT, the graph any.

    Args:
        fp16: Compute in float16.
        batch: Texts a batch at most.
        cosine: The least mean cosine with the model's vectors.
    """

    def __init__(self, fp16: bool = True, batch: int = 64, cosine: float = 0.999):
        self.fp16, self.batch, self.cosine = fp16, batch, cosine

    def __call__(self, model: Model, folder: Path) -> str:
        """Write into an empty folder, and say how near it is.

        Raises:
            UsageError: TensorRT is not installed here, or the engine computes something else.
        """
        if find_spec("tensorrt") is None or PROVIDER not in onnxruntime.get_available_providers():
            there = ", ".join(onnxruntime.get_available_providers())
            raise UsageError(
                "to=tensorrt builds an engine for the GPU of this machine, and needs TensorRT here: pip install "
                f"tensorrt onnxruntime-gpu, on a machine with an NVIDIA GPU. ONNX Runtime here has {there}. to=onnx "
                "gives the graph, which trtexec --onnx builds there."
            )
        with TemporaryDirectory() as work:
            as_graph(model, Path(work)).write(folder)
            engine = load(folder)
            engine.providers = [(PROVIDER, self.options(engine, folder))]
            # a text has a token at least, so that a pass of `batch` tokens has no more texts than the engine takes
            return f"mean cosine {near(model, engine, self.cosine, batch_tokens=self.batch):.5f}"

    def options(self, model: GraphModel, folder: Path) -> dict[str, Any]:
        """Of the provider: the shapes of every input, (B, T) or (B), at least, mostly and at most."""
        inputs = session(str(model.file), ["CPUExecutionProvider"]).get_inputs()

        def shape(*sizes: int) -> str:
            return ",".join(f"{i.name}:{'x'.join(map(str, sizes[: len(i.shape)]))}" for i in inputs)

        longest = model.encoder.max_length
        return {
            "trt_fp16_enable": self.fp16,
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(folder / "engine"),
            "trt_profile_min_shapes": shape(1, 1),
            "trt_profile_opt_shapes": shape(min(32, self.batch), min(64, longest)),
            "trt_profile_max_shapes": shape(self.batch, longest),
        }
