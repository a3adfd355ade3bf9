"""A child process that reads the datasets whose paths come in, one a line, and says what became of each."""

import json
import sys

import numpy as np

from palaestra.data.check import check
from palaestra.data.dataset import Dataset, DatasetError
from palaestra.data.files import read


def whole(data: Dataset) -> None:
    """What is true of every dataset, whatever was in the file."""
    for name in (*data.obs_names, "action", "reward"):
        assert np.isfinite(data.columns[name]).all(), f"{name} is not finite"
    ends = data.columns["terminated"] | data.columns["truncated"]
    expected = np.zeros(data.slots, bool)
    expected[data.first + data.lengths - 1] = True
    assert (ends == expected).all(), "episodes end where they end, and nowhere else"
    for name in ("action", "reward", "terminated", "truncated"):
        assert not data.columns[name][~data.is_step].any(), f"{name} has something in a final slot"


for line in sys.stdin:
    path = line.strip()
    try:
        problems = [str(problem) for problem in check(path)]
    except DatasetError as wrong:
        problems = [str(wrong)]
    answer = {"problems": problems}
    try:
        data = read(path)
        whole(data)
        answer |= {"steps": data.steps + data.about["dropped"], "hash": data.hash}
    except DatasetError as wrong:
        answer["error"] = str(wrong)
    print(json.dumps(answer), flush=True)
