"""Stages: algorithms in order, each in a run of its own that begins with what an earlier one learnt.

A file of stages is TOML. What stands above the first stage holds for all of them:

    seed = 0

    [[stage]]
    name = "sft"
    train = "sft(lr=1e-3)"                       # an expression
    model = "palaestra/add"
    dataset = "demonstrations.jsonl"             # or "module:function": see `made`
    steps = 200

    [[stage]]
    name = "rlvr"
    train = "ppo-lm(lr=3e-4, longest=5)"
    from = "sft"                                 # begins with what that stage learnt
    networks = { critic = "preferences.reward" } # and with this network of another stage
    env = "palaestra/MarkedAdd-v0"
    rounds = 100

The other fields are keywords of `palaestra.training.train`. Files are looked for beside the file of stages. Optimisers,
schedules and random streams begin afresh in each stage, but where `from` names a run without a language model: that is
gone on with, as `begin_from` of `train` says.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from palaestra.data.dataset import DatasetError
from palaestra.expression import nearest, parse
from palaestra.grounding import counted
from palaestra.processes import Listen
from palaestra.runs import Run, RunError
from palaestra.runs.files import from_json, to_json, write_file
from palaestra.training import resume, silent, train

TEXT, NUMBER = "a text", "a whole number"
KINDS = {TEXT: str, NUMBER: int, "a text or a list of texts": str | list, "a table": dict}
FIELDS = {
    **dict.fromkeys(("name", "train", "from", "model", "env", "dataset", "prompts", "device", "precision"), TEXT),
    **dict.fromkeys(("steps", "rounds", "seed", "environments", "episodes", "threads", "micro_batch"), NUMBER),
    **dict.fromkeys(("evaluate_every", "log_every", "checkpoint_every"), NUMBER),
    "reward": "a text or a list of texts",
    "columns": "a table",
    "networks": "a table",
}
OWN = ("name", "train", "from")  # what no stage can have of the lines above the first one
BESIDE = ("model", "dataset", "prompts")  # what may be a file
PLAN = "stages.json"
OURS = Path(__file__).parent  # where the recipes are that come with the library

Stage = dict[str, Any]


def stages(file: str | Path | Mapping[str, Any], out: str | Path, *, listen: Listen = silent) -> dict[str, Run]:
    """Run all stages of a file in order, and return their runs by name; the same call goes on where it was stopped.

    Args:
        file: of stages; the name of one that comes with the library ("tulu3-rlvr"); or what such a file says.
        out: the folder; each stage's run is in the folder of its name there. A stage whose run is finished is not run
            again, one that is not is continued from its last checkpoint.
        listen: called with `{"kind": "stage", "name", "number", "of", "finished"}` before each, and with the rows of
            its training.

    Raises ValueError, in one line with file, stage and field, for a file that is not understood, for what a stage
    cannot begin with, and where a stage is no longer what its run was begun with; RunError as `train`.
    """
    where, given = read(file)
    plan = _checked(where, given)
    folder = Path(out)
    _unchanged(where, plan, folder)
    done: dict[str, Run] = {}
    for number, stage in enumerate(plan, 1):
        place = folder / stage["name"]
        begun = Run.open(place) if (place / "run.json").exists() else None
        finished = begun is not None and begun.about["status"] == "finished"
        listen({"kind": "stage", "name": stage["name"], "number": number, "of": len(plan), "finished": finished})
        if begun is not None:
            done[stage["name"]] = begun if finished else resume(place, listen=listen)
            continue
        keywords = _resolved(where, stage, folder)
        try:
            done[stage["name"]] = train(stage["train"], **keywords, out=place, listen=listen)
        except (ValueError, DatasetError) as wrong:
            raise _wrong(where, stage["name"], "", str(wrong)) from wrong
    return done


def known() -> list[str]:
    """The names of the recipes that come with the library."""
    return sorted(path.stem.replace("_", "-") for path in OURS.glob("*.toml"))


def read(file: str | Path | Mapping[str, Any]) -> tuple[Path, Mapping[str, Any]]:
    """Where a file of stages is, and what it says, as it stands there. ValueError where it cannot be read."""
    if isinstance(file, Mapping):
        return Path("stages"), file
    path = Path(file)
    if str(file) in known():
        path = OURS / f"{str(file).replace('-', '_')}.toml"
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as missing:
        raise ValueError(
            f"{path}: there is no such file; of those that come with palaestra {nearest(str(file), known())}"
        ) from missing
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as wrong:
        raise ValueError(f"{path}: it cannot be read as TOML: {wrong}") from wrong


def _wrong(where: Path, stage: str, field: str, what: str) -> ValueError:
    place = [str(where), f"stage {stage!r}" if stage else "", f"field {field!r}" if field else ""]
    return ValueError(f"{', '.join(filter(None, place))}: {' '.join(what.split())}")


def _checked(where: Path, given: Mapping[str, Any]) -> list[Stage]:
    """The stages, each with what holds for all of them."""
    common = {name: value for name, value in given.items() if name != "stage"}
    own = given.get("stage")
    if not own or not isinstance(own, Sequence) or not all(isinstance(stage, Mapping) for stage in own):
        raise _wrong(where, "", "stage", "there are no stages; begin each with a line [[stage]]")
    if common_own := [name for name in OWN if name in common]:
        raise _wrong(where, "", common_own[0], "it is of one stage; write it below a line [[stage]]")
    plan: list[Stage] = []
    for number, stage in enumerate(own, 1):
        above = {name: value for name, value in common.items() if not (name == "model" and "from" in stage)}
        plan.append(_checked_stage(where, number, {**above, **stage}, [before["name"] for before in plan]))
    return plan


def _checked_stage(where: Path, number: int, stage: Stage, before: Sequence[str]) -> Stage:
    name = stage.get("name", f"number {number}")

    def wrong(field: str, what: str) -> ValueError:
        return _wrong(where, str(name), field, what)

    for field, value in stage.items():
        if field not in FIELDS:
            raise wrong(field, f"there is no such field; {nearest(field, FIELDS)}")
        kind = FIELDS[field]
        if not isinstance(value, KINDS[kind]) or isinstance(value, bool):
            raise wrong(field, f"it is {value!r}; it must be {kind}")
    if missing := [field for field in ("name", "train") if field not in stage]:
        raise wrong(missing[0], "it is missing")
    if not re.fullmatch(r"[\w-]+", name) or name in before:
        raise wrong("name", "give letters, digits, - and _, and each name once: it is a folder's")
    try:
        counted(parse(stage["train"]), stage.get("steps"), stage.get("rounds"))
    except ValueError as mistake:
        raise wrong("train", str(mistake)) from mistake
    if "from" in stage and "model" in stage:
        raise wrong("model", "it begins with what 'from' says; leave one of them out")
    origins = [("networks", str(origin)) for origin in stage.get("networks", {}).values()]
    origins += [("from", stage["from"])] if "from" in stage else []
    for field, origin in origins:
        earlier, dot, network = origin.partition(".")
        if earlier not in before:
            raise wrong(field, f"no earlier stage is called {earlier!r}; {nearest(earlier, before)}")
        if field == "networks" and not (dot and network):
            raise wrong(field, f"{origin!r} is no STAGE.NETWORK, such as {earlier}.policy")
    return stage


def _unchanged(where: Path, plan: Sequence[Stage], folder: Path) -> None:
    """Remember the plan; ValueError where a stage that was begun is another one now."""
    path = folder / PLAN
    if path.exists():
        for before, now in zip(from_json(path.read_bytes()), plan, strict=False):
            fields = [field for field in {**before, **now} if before.get(field) != now.get(field)]
            if fields and (folder / before["name"] / "run.json").exists():
                what = f"it was {before.get(fields[0])!r} when {folder} was begun; put it back, or give another --out"
                raise _wrong(where, before["name"], fields[0], what)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, [to_json(plan, indent=2).encode()])
    except OSError as wrong:
        raise RunError(folder, f"cannot be written ({wrong.strerror})", "choose another --out") from wrong


def _resolved(where: Path, stage: Stage, folder: Path) -> dict[str, Any]:
    """The keywords of `train`."""
    keywords = {field: value for field, value in stage.items() if field not in (*OWN, "networks")}
    for field in BESIDE:
        if field in keywords and (beside := where.parent / keywords[field]).exists():
            keywords[field] = str(beside)
    if "networks" in stage:
        origins = {own: origin.partition(".") for own, origin in stage["networks"].items()}
        keywords["begin_from"] = {own: f"{folder / name}:{network}" for own, (name, _, network) in origins.items()}
    if "from" in stage:
        earlier = folder / stage["from"]
        speaks = Run.open(earlier).about.get("model") is not None
        if not speaks and "begin_from" in keywords:
            raise _wrong(
                where, stage["name"], "networks", "it goes on with all networks of 'from'; leave one of them out"
            )
        keywords["model" if speaks else "begin_from"] = str(earlier)
    if "dataset" in keywords and re.fullmatch(r"[\w.]+:\w+", keywords["dataset"]):
        keywords["dataset"] = _made(where, stage, keywords.get("model"), folder)
    return keywords


def _made(where: Path, stage: Stage, model: str | None, folder: Path) -> str:
    """The file of rows that `function(model)` of "module:function" gives, made once; `model` is what is begun with."""
    path = folder / f"{stage['name']}.jsonl"
    if not path.exists():
        module, _, function = stage["dataset"].partition(":")
        try:
            made = getattr(import_module(module), function)
        except (ImportError, AttributeError) as wrong:
            raise _wrong(where, stage["name"], "dataset", f"{stage['dataset']} cannot be used: {wrong}") from wrong
        write_file(path, [f"{to_json(row)}\n".encode() for row in made(model)])
    return str(path)
