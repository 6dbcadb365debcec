"""How a process that is one of several ends, and how much memory one has had."""

import subprocess
import sys

import pytest

from unitsphere.process import PEAK

LEAVES = """
import atexit
from unitsphere.process import leave

atexit.register(print, "cleared up")
print("done")
leave()
"""


def test_what_was_said_is_said_and_nothing_is_cleared_up():
    done = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"


PEAKS = """
import sys
import numpy as np
from unitsphere.process import forget_peak, peak_memory

first = peak_memory()
np.ones(50 * 2**20)  # 400 MiB, freed at once
second = peak_memory()
forget_peak()
print(first, second, peak_memory())
"""


@pytest.mark.skipif(not PEAK.exists(), reason="needs Linux's /proc")
def test_the_peak_is_of_this_process_and_of_now():
    parent = bytearray(600 * 2**20)  # which getrusage would report in the child
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    first, second, third = map(float, done.stdout.split())
    assert first < 300 and len(parent)
    assert 350 < second - first < 450
    assert third < first + 50
