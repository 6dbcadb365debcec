"""Which products this machine's processor is fast in."""

import torch

from unitsphere.process import processor

BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
AMX = BF16 and torch.cpu._is_amx_tile_supported()  # by whole tiles of registers, several times as fast again
INTEL = "Intel" in processor()  # whose own library, MKL, is what torch multiplies float32 by
