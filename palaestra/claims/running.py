"""Run a claim: compare its two arms, and say what that makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from palaestra.claims import CLAIMS
from palaestra.claims.claim import SCALES, Claim
from palaestra.claims.results import KEPT, code, keep, kept, kernel
from palaestra.comparison import Comparison, compare
from palaestra.comparison.running import TRAINING
from palaestra.data.files import read, write
from palaestra.evaluation.answers import REWARD
from palaestra.evaluation.measures import MEASURES
from palaestra.expression import nearest, parse
from palaestra.grounding import counts_rounds
from palaestra.processes import Listen
from palaestra.training import silent

ALPHA = 0.05
# So few seeds cannot reach 0.05: a smoke run proves that the claim can be run, and its verdict proves nothing.
SMOKE_ALPHA = 0.5
PROVENANCE = ("palaestra", "python", "torch", "numpy", "gymnasium", "mujoco", "cpu", "cores", "git")


def claim(
    slug: str,
    scale: str = "cpu",
    *,
    out: str | Path | None = None,
    threads: int | None = None,
    record: bool = False,
    listen: Listen = silent,
) -> dict[str, Any]:
    """Run a paper's claim and say whether it is confirmed, contradicted or undecided here.

    Args:
        slug: of the method.
        scale: "smoke" (seconds: proves that it runs, nothing more), "cpu" (minutes) or "paper".
        out: the comparison's folder; "claims/SLUG-SCALE" when None. The same call goes on where it was stopped.
        threads: of all processes together; as many as PyTorch has when None.
        record: keep the result with the library, for its pages.
        listen: called with rows that say how far it is.

    Returns:
        `{"slug", "scale", "verdict", "measured", "scores", "seconds", "report", ...}`.

    Raises ValueError for another slug or scale, and as `palaestra.comparison.compare`.
    """
    return run(claim_of(slug), scale, out=out, threads=threads, record=record, listen=listen)


def claim_of(slug: str) -> Claim:
    """A listed claim. ValueError with the nearest names where there is none."""
    if slug not in CLAIMS:
        raise ValueError(f"there is no claim {slug!r}; {nearest(slug, CLAIMS)}")
    found = import_module(CLAIMS[slug]).CLAIM
    assert isinstance(found, Claim)
    return found


def run(
    claim: Claim, scale: str, *, out: str | Path | None, threads: int | None, record: bool, listen: Listen = silent
) -> dict[str, Any]:
    """As `claim`, for one that need not be listed."""
    if scale not in SCALES:
        raise ValueError(f"there is no scale {scale!r}; {nearest(scale, SCALES)}")
    if record and scale not in KEPT:
        raise ValueError(f"a result of scale {scale!r} proves nothing and is not recorded; use {' or '.join(KEPT)}")
    size = claim.scales[scale]
    if unknown := [name for name in size.train if name not in TRAINING]:
        raise ValueError(f"{claim.slug}: scale {scale!r} has train={unknown[0]!r}; {nearest(unknown[0], TRAINING)}")
    folder = Path(out) if out is not None else Path("claims") / f"{claim.slug}-{scale}"
    data: dict[str, Any] = {"dataset": str(_dataset(claim, folder))} if claim.dataset else {}
    of_expressions = isinstance(claim.baseline, str)
    arms = [claim.baseline, claim.treatment] if of_expressions else None
    in_rounds = isinstance(claim.baseline, str) and counts_rounds(parse(claim.baseline))
    long: dict[str, Any] = {"rounds" if in_rounds else "steps": size.steps}
    comparison = compare(
        arms or {"baseline": claim.baseline, claim.slug: claim.treatment},
        claim.world,
        **long,
        alpha=SMOKE_ALPHA if scale == "smoke" else ALPHA,
        group=size.group,
        max_groups=size.max_groups,
        measure=claim.measure if claim.measure in MEASURES else "final",
        score=_score(claim, size.train),
        out=folder,
        threads=threads,
        stamp={"code": code(claim), "kernel": kernel()},  # of when it began: what goes on with other code is no result
        listen=listen,
        **size.train,
        **data,
    )
    result = _result(claim, scale, comparison)
    if record:
        keep(result)
    return {**result, "report": str(comparison.report)}


def _score(claim: Claim, training: Mapping[str, Any]) -> str:
    """Of an evaluation; what functions give has the name of the measure."""
    if claim.measure not in MEASURES:
        return claim.measure
    return REWARD if "model" in training else "episode_return"


def _dataset(claim: Claim, folder: Path) -> Path:
    """The file of the claim's dataset, made where it is not there yet: beside the comparison, and named after it."""
    assert claim.dataset is not None
    path = folder.with_name(f"{folder.name}-dataset.hdf5")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(claim.dataset(), path)
    return path


def _result(claim: Claim, scale: str, comparison: Comparison) -> dict[str, Any]:
    summary = comparison.summary
    baseline, treatment = summary["arms"]
    (decision,) = summary["decisions"]  # of the baseline against the treatment
    told = {"larger": "smaller", "smaller": "larger"}.get(decision["decision"], "undecided")
    verdict = "undecided" if told == "undecided" else "confirmed" if told == claim.direction else "contradicted"
    arms = {name: {k: v for k, v in arm.items() if k != "calls"} for name, arm in summary["arms"].items()}
    plan = {key: value for key, value in summary["plan"].items() if key not in ("arms", "stamp")}
    if claim.dataset:  # by its content: where the file lay is nobody's business
        plan["training"] = {**plan["training"], "dataset": read(plan["training"]["dataset"]).hash}
    return {
        "slug": claim.slug,
        "scale": scale,
        "verdict": verdict,
        "says": claim.says,
        "direction": claim.direction,
        "differs": claim.differs,
        "tried": claim.tried,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "sentences": summary["verdict"],
        "measured": {
            "baseline": {"name": baseline, **_measured(arms[baseline])},
            "treatment": {"name": treatment, **_measured(arms[treatment])},
            "difference": decision["difference"],
            "probability": decision["probability"],
            "groups": summary["groups"],
        },
        "scores": {name: dict(zip(map(str, arm["seeds"]), arm["scores"], strict=True)) for name, arm in arms.items()},
        "seconds": summary["seconds"],
        "plan": plan,
        "arms": arms,
        "decisions": summary["decisions"],
        "provenance": {key: summary["provenance"].get(key) for key in PROVENANCE},
        **summary["plan"]["stamp"],
    }


def _measured(arm: Mapping[str, Any]) -> dict[str, Any]:
    return {"iqm": arm["iqm"], "interval": arm["interval"], "seeds": len(arm["seeds"])}


def table() -> list[dict[str, Any]]:
    """One row a claim: `slug, title, verdict, scale, date, seconds, stale, kernel_changed` (None where never run)."""
    rows = []
    for slug in CLAIMS:
        listed = claim_of(slug)
        result = kept(listed) or {}
        told = ("verdict", "scale", "date", "seconds", "stale", "kernel_changed")
        rows.append({"slug": slug, "title": listed.says, **{key: result.get(key) for key in told}})
    return rows
