"""Where the networks of a new run begin: as those of an earlier run, all of them or some alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palaestra.runs import Run, RunError
from palaestra.runs.check import begun
from palaestra.runs.checkpoints import Checkpoint, Checkpoints
from palaestra.stored import unfitting
from palaestra.together import Live


def _folder_of(run: str | Path | Run) -> Path:
    return run.folder if isinstance(run, Run) else Path(run)


def places_of(begin_from: str | Path | Run | Mapping[str, str] | None) -> str | dict[str, str] | None:
    """What run.json says of where a run begins."""
    if isinstance(begin_from, Mapping):
        return {name: str(Path(place).absolute()) for name, place in begin_from.items()}
    return None if begin_from is None else str(_folder_of(begin_from).absolute())


def _checkpoint_of(run: Run) -> Checkpoint:
    checkpoint = Checkpoints(run.folder / "checkpoints").latest()
    if checkpoint is None:
        raise RunError(run.folder, "it has no checkpoint to begin from", "wait for one, or name another run")
    return checkpoint


def _begin_network(live: Live, name: str, place: str) -> None:
    """Give one network of a run that has just begun the parameters of an earlier run's: "FOLDER:network"."""
    folder, _, other = place.rpartition(":")
    checkpoint = _checkpoint_of(begun(Path(folder)))
    state: Any = checkpoint.state["learner"]
    inside = {key.partition(".")[0] for key in state["nets"]}
    for whose, network, there in (("the algorithm", name, live.learner.nets), (folder, other, inside)):
        if network not in there:
            raise ValueError(f"{whose} has no network {network!r}; there are: {', '.join(sorted(there))}")
    own = {key.removeprefix(f"{other}."): x for key, x in state["nets"].items() if key.startswith(f"{other}.")}
    try:
        live.learner.nets[name].load_state_dict(own)
    except (LookupError, RuntimeError) as wrong:
        raise unfitting(checkpoint, wrong) from wrong


def begin_with(live: Live, earlier: str | Path | Run | Mapping[str, str]) -> None:
    """Give a run that has just begun the networks and optimisers of an earlier one's last checkpoint, or some alone."""
    if isinstance(earlier, Mapping):
        for name, place in earlier.items():
            _begin_network(live, name, place)
        return
    run = begun(earlier if isinstance(earlier, Run) else Path(earlier))
    checkpoint = _checkpoint_of(run)
    if list(run.about["seeds"]) != list(live.seeds):
        what, remedy = f"its seeds are {run.about['seeds']}", f"begin from a run of seeds {list(live.seeds)}"
        raise RunError(run.folder / "run.json", what, remedy, "field 'seeds'")
    state: Any = checkpoint.state["learner"]
    learner = live.learner
    try:
        learner.nets.load_state_dict(state["nets"])
        for name, optimiser in learner.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
    except (LookupError, RuntimeError, TypeError, ValueError) as wrong:
        raise unfitting(checkpoint, wrong) from wrong
    learner.nets.clock.env_steps.zero_()
    learner.updates = int(state["updates"])
