"""How a process that is one of several ends."""

import subprocess
import sys

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
