"""The results of claims that are kept with the library, and whether its code is still the one that made them."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from palaestra.algorithm import Algorithm
from palaestra.claims.claim import Claim
from palaestra.expression import catalogue, parse
from palaestra.runs import RunError
from palaestra.runs.files import from_json, to_json, write_file

PACKAGE = Path(str(files("palaestra")))
KEPT = ("paper", "cpu")  # a smoke run proves nothing
RESULTS = PACKAGE / "claims" / "results"
# What every method stands on. A change there may or may not touch a claim: it is told apart from one of its own files.
KERNEL = (
    "algorithm.py", "batch.py", "expression.py", "learner.py", "optimisers.py", "stacking.py", "functional", "networks",
    "data", "rollout", "teachers", "evaluation", "envs", "loops", "factories",
)  # fmt: skip


def code(claim: Claim) -> dict[str, str]:
    """The hash of each file that a claim is made of: its own, its methods', its bases'; by path in the package."""
    paths = {f"claims/{claim.slug.replace('-', '_')}.py"}
    entries = {**catalogue("algorithms"), **catalogue("methods")}
    slugs = {claim.slug}
    for arm in (claim.baseline, claim.treatment):
        value = parse(arm) if isinstance(arm, str) else None
        slugs |= {call.slug for call in value.calls} if isinstance(value, Algorithm) else set()
    for slug in slugs:
        if slug in entries and entries[slug].package == "palaestra":
            module = entries[slug].reference.partition(":")[0]
            paths.add("/".join(module.split(".")[1:]) + ".py")
    return {path: _hash(PACKAGE / path) for path in sorted(paths)}


def kernel() -> str:
    """One hash of what all claims stand on."""
    found: list[Path] = []
    for name in KERNEL:
        path = PACKAGE / name
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return hashlib.sha256("".join(_hash(path) for path in found).encode()).hexdigest()


def _hash(path: Path) -> str:
    """Of what a file computes: comments, docstrings and layout do not count."""
    told = path.stat()
    return _hash_of(path, told.st_mtime_ns, told.st_size)


@cache  # a table of all claims asks for the kernel's files once for each
def _hash_of(path: Path, changed: int, size: int) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def path_of(slug: str, scale: str) -> Path:
    return RESULTS / f"{slug}-{scale}.json"


def keep(result: Mapping[str, Any]) -> Path:
    """Write a result beside the library's others. RunError where the library cannot be written."""
    path = path_of(result["slug"], result["scale"])
    try:
        path.parent.mkdir(exist_ok=True)
        write_file(path, [to_json(result, indent=1).encode() + b"\n"])
    except OSError as wrong:
        remedy = "record it from a clone that you may write, or leave out --record"
        raise RunError(path, f"cannot be written ({wrong.strerror})", remedy) from wrong
    return path


def kept(claim: Claim) -> dict[str, Any] | None:
    """The result of the largest scale that there is; None where there is none.

    With `changed`, its own files that have changed since, whether it is `stale` for that, and `kernel_changed`.
    """
    for scale in KEPT:
        path = path_of(claim.slug, scale)
        if path.exists():
            result = from_json(path.read_bytes())
            now = code(claim)
            changed = sorted(name for name in now if result["code"].get(name) != now[name])
            kernel_changed = result["kernel"] != kernel()
            return {**result, "stale": bool(changed), "changed": changed, "kernel_changed": kernel_changed}
    return None
