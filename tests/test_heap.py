"""Freed memory that stays: counted by page faults, in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import torch
from unitsphere.heap import keep_freed

if sys.argv[1] == "kept":
    keep_freed()
for _ in range(20):  # until the blocks that are free have the sizes that are asked for
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(kind: str, **variables: str) -> int:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "THP_", "LD_PRELOAD"))}
    line = [sys.executable, "-c", COUNT, kind]
    return int(subprocess.run(line, env=plain | variables, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_a_large_block_is_asked_for_once():
    given_back = faults("given back")
    assert faults("kept") < given_back / 10
    assert faults("kept", MALLOC_MMAP_THRESHOLD_="131072") > given_back / 2  # who has set it keeps what was set
