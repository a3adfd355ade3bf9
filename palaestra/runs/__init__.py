"""A run's folder: what was run (`run.json`), what was measured (`metrics.jsonl`), and where to go on (`checkpoints/`).

This is storage and imports nothing else of palaestra. `checkpoints` and `states` are not imported here because they
import torch, and listing runs should not wait for it.
"""

from palaestra.runs.check import check
from palaestra.runs.errors import CheckpointError, RunError
from palaestra.runs.plots import learning_curve
from palaestra.runs.provenance import provenance
from palaestra.runs.queries import broken, find, folders_of_runs, matching, row, table
from palaestra.runs.run import Run

__all__ = [
    "CheckpointError",
    "Run",
    "RunError",
    "broken",
    "check",
    "find",
    "folders_of_runs",
    "learning_curve",
    "matching",
    "provenance",
    "row",
    "table",
]
