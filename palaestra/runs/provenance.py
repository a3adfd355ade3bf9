"""Where and with what a run was made; never by whom."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("palaestra", "torch", "numpy", "gymnasium", "mujoco")

# Seconds: a network drive may make git wait, and training should not.
_PATIENCE = 5.0


def provenance() -> dict[str, Any]:
    """Return versions, machine, git commit and command line as JSON data; imports nothing heavy.

    Keys: `python`, `palaestra`, `torch`, `numpy`, `gymnasium`, `mujoco` (versions, None when absent), `platform`,
    `cpu`, `cores` (that this process may use), `memory` (bytes, or None), `torch_threads` (None until torch is
    imported), `git` (`{"commit", "dirty"}` of the current folder's repository, or None), `command`.
    """
    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _memory(),
        "torch_threads": torch.get_num_threads() if torch is not None else None,
        "git": _git(),
        "command": _command(sys.argv),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, other systems not these names
        return None


def _git() -> dict[str, Any] | None:
    commit = _answer("rev-parse", "HEAD")
    if not commit:
        return None
    # Untracked files do not count: the runs themselves are among them.
    changes = _answer("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _answer(*arguments: str) -> str | None:
    # Without optional locks, looking at the status never stands in the way of a git command of the user's.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=_PATIENCE, check=True, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _command(arguments: list[str]) -> list[str]:
    # The home folder's path names its user.
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.home raises where there is none)
    program, *rest = arguments or [""]
    return [Path(program).name, *(part if len(home) < 2 else part.replace(home, "~") for part in rest)]
