"""A process whose parent is gone ends, whatever it is doing."""

import subprocess
import sys

SWALLOWING = """
import time
from palaestra import processes

processes.AGAIN = 0.2
processes.stop_with_parent()
for attempt in "lost", "":
    try:
        for _ in range(3_000):
            time.sleep(0.01)
    except KeyboardInterrupt:
        if not attempt:
            raise
        print(attempt, flush=True)
"""


def test_an_interrupt_that_is_lost_is_followed_by_another() -> None:
    began = subprocess.run([sys.executable, "-c", SWALLOWING], input=b"", capture_output=True, timeout=25)
    assert began.stdout == b"lost\n"
    assert began.stderr.rstrip().endswith(b"KeyboardInterrupt")
