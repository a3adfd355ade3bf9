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

    Keys: `python`, `palaestra`, `torch`, `numpy`, `gymnasium`, `mujoco` (versions, None when absent), `packages`
    ("name==version" of everything that is installed), `platform`, `cpu`, `cores` (that this process may use), `memory`
    (bytes, or None), `gpus` (names; none until torch is imported), `torch_threads` (None until torch is imported),
    `git` (`{"commit", "dirty"}` of the current folder's repository, or None), `source` (the same of the repository that
    palaestra is run from, None where it is installed), `command`. Never environment variables: they hold secrets.
    """
    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "packages": _packages(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _memory(),
        "gpus": _gpus(torch),
        "torch_threads": torch.get_num_threads() if torch is not None else None,
        "git": _git(Path()),
        "source": _source(Path(__file__)),
        "command": _command(sys.argv),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> list[str]:
    # By name once, and the first found: the one that is imported where two are on the path.
    found: dict[str, str] = {}
    for one in metadata.distributions():
        if name := one.metadata["Name"]:
            found.setdefault(name, f"{name}=={one.version}")
    return sorted(found.values(), key=str.lower)


def _gpus(torch: Any) -> list[str]:
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


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


def _git(folder: Path) -> dict[str, Any] | None:
    commit = _answer(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    # Untracked files do not count: the runs themselves are among them.
    changes = _answer(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _source(file: Path) -> dict[str, Any] | None:
    # Installed packages may lie within a repository (in its .venv), which does not track them.
    tracked = _answer(file.parent, "ls-files", "--error-unmatch", file.name)
    return _git(file.parent) if tracked else None


def _answer(folder: Path, *arguments: str) -> str | None:
    # Without optional locks, looking at the status never stands in the way of a git command of the user's.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _command(arguments: list[str]) -> list[str]:
    # The home folder's path names its user.
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.home raises where there is none)
    program, *rest = arguments or [""]
    return [Path(program).name, *(part if len(home) < 2 else part.replace(home, "~") for part in rest)]
