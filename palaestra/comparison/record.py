"""A comparison's folder: what is compared, and how far it came. Its runs lie beside it, one folder an arm."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from palaestra.runs import RunError, provenance
from palaestra.runs.files import from_json, sync_folder, to_json, write_file
from palaestra.runs.lock import lock

NAME = "comparison.json"
FORMAT = 1


class Record:
    """`comparison.json`: `plan`, which never changes, and what is known so far. Written atomically."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder, self.about = folder, about

    @classmethod
    def begin(cls, folder: Path, plan: Mapping[str, Any]) -> Record:
        """The record in `folder`, which is made where there is none.

        Raises:
            RunError: it is of another plan, cannot be read, or the folder cannot be written.
        """
        path = folder / NAME
        plan = from_json(to_json(plan))
        if path.exists():
            record = cls.open(folder)
            for field, now in plan.items():
                if (was := record.about["plan"].get(field)) != now:
                    what = f"is of another comparison: {field} was {_short(was)} and is now {_short(now)}"
                    raise RunError(path, what, "choose another --out, or repeat the command that began it", field)
            return record
        if (folder / "run.json").exists():
            raise RunError(folder, "holds a run", "choose another --out")
        about = {
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "status": "running",
            "seconds": 0.0,
            "plan": plan,
            "provenance": provenance(),
        }
        record = cls(folder, about)
        record.update()
        return record

    @classmethod
    def open(cls, folder: Path) -> Record:
        """The record in `folder`. RunError where there is none, or it cannot be read."""
        path = folder / NAME
        remedy = "restore it from a copy, or compare again with another --out"
        try:
            about = from_json(path.read_bytes())
        except FileNotFoundError:
            raise RunError(folder, f"holds no {NAME}, so it is no comparison", "give the --out of one") from None
        except (OSError, ValueError) as wrong:
            raise RunError(path, f"cannot be read ({wrong})", remedy) from wrong
        if not isinstance(about, dict) or not isinstance(about.get("plan"), dict):
            raise RunError(path, "does not say what is compared", remedy, "field 'plan'")
        return cls(folder, about)

    def update(self, **fields: Any) -> None:
        """Merge fields and write. RunError where that cannot be done."""
        self.about |= fields
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(self.folder / NAME, [to_json(self.about, indent=2).encode() + b"\n"])
            sync_folder(self.folder)
        except OSError as wrong:
            raise RunError(self.folder, f"cannot be written ({wrong.strerror})", "choose another --out") from wrong

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other processes from going on with this comparison meanwhile. RunError where one does."""
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not lock(descriptor):
                raise RunError(self.folder, "another process goes on with it", "wait for it, or end it")
            yield
        finally:
            os.close(descriptor)


def _short(value: Any) -> str:
    text = to_json(value)
    return text if len(text) < 80 else f"{text[:77]}..."
