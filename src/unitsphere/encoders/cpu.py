"""Which products this machine's processor is fast in."""

import platform
from pathlib import Path

import torch

INFO = Path("/proc/cpuinfo")
BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
AMX = BF16 and torch.cpu._is_amx_tile_supported()  # by whole tiles of registers, several times as fast again
MAKER = INFO.read_text() if INFO.exists() else platform.processor()
MKL = "GenuineIntel" in MAKER and torch.backends.mkl.is_available()  # Intel's own products, best on its own processors
