"""In what this machine's processor multiplies, beside float32."""

import torch

BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
AMX = BF16 and torch.cpu._is_amx_tile_supported()  # by whole tiles of registers, several times as fast again
