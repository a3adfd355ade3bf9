"""What can be wrong with a run's folder, said in one line."""

from __future__ import annotations

from pathlib import Path


class RunError(Exception):
    """Something is wrong with a run's folder.

    Args:
        file: the file or folder at fault.
        what: what is wrong with it.
        remedy: what to do about it.
        where: the place within the file, such as "line 3, column 7".
    """

    def __init__(self, file: Path, what: str, remedy: str, where: str = "") -> None:
        # Everything goes to the base class because exceptions are pickled (between processes) by their arguments.
        super().__init__(file, what, remedy, where)
        self.file, self.what, self.remedy, self.where = file, what, remedy, where

    def __str__(self) -> str:
        """Return one line: file, place, what, remedy."""
        place = f"{self.file}, {self.where}" if self.where else f"{self.file}"
        return f"{place}: {self.what}; {self.remedy}"


class CheckpointError(RunError):
    """A checkpoint cannot be written, or what was written is damaged."""
