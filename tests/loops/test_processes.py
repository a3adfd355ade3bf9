"""A process whose parent is gone ends, whatever it is doing."""

import subprocess
import sys

LOSING = """
import time
from palaestra import processes

processes.AGAIN = 0.2
processes.stop_with_parent()
for attempt in "first", "second":
    try:
        print(attempt, flush=True)
        for _ in range(3_000):
            time.sleep(0.01)
    except KeyboardInterrupt:
        if attempt == "second":
            raise
"""


def test_an_interrupt_that_is_lost_is_followed_by_another() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", LOSING], **pipes) as process:
        assert process.stdout.readline() == b"first\n"
        out, said = process.communicate(timeout=25)  # closes its input
    assert out == b"second\n"
    assert said.rstrip().endswith(b"KeyboardInterrupt")
