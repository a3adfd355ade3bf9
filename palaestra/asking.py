"""What a run's folder gives back, whatever it learnt: its policy, the scores that this earns, a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palaestra import stored
from palaestra.deployed import Deployed, new_folder
from palaestra.envs.make import World
from palaestra.expression import nearest
from palaestra.grounding import text_again
from palaestra.runs import Run, RunError
from palaestra.runs.check import begun
from palaestra.speaker import Speaker, export_model, speaker
from palaestra.stored import FORMATS, algorithm_of, positive

FOLDER = "huggingface"  # the format that `transformers` reads


def _of_texts(run: str | Path | Run) -> Run | None:
    """The run, where it is one of a language model."""
    if not isinstance(run, Run) and not (Path(run) / "run.json").is_file():
        return None
    run = begun(run if isinstance(run, Run) else Path(run))
    return run if run.about.get("model") is not None else None


def load(run: str | Path | Run, *, seed: int | None = None, device: str = "cpu") -> Deployed | Speaker:
    """The policy of a run's last checkpoint, or of a folder that `export` made. RunError where there is none.

    Of a language model, `Speaker`: `pal.load(run).answer("2+3=")`. Of a run of several seeds, that of the first when
    `seed` is None. ValueError for a seed that the run has not.
    """
    texts = _of_texts(run)
    return stored.load(run, seed=seed, device=device) if texts is None else speaker(texts, seed, device)


def evaluate(
    run: str | Path | Run,
    *,
    episodes: int | None = None,
    seed: int = 0,
    env: World | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """The raw scores of the policy of each of a run's seeds: `{"run": folder, "scores": {name: {seed: [values]}}}`.

    And `env_steps`, after how many (or, of a dataset or a language model, after how many updates or rounds) the
    policies were saved, and `problems`: newer checkpoints that are damaged. All seeds play the same fresh episodes,
    begun with `seed`, 10 when `episodes` is None; a language model answers 100 prompts, or says how likely held-out
    texts are.
    """
    texts = _of_texts(run)
    if texts is None:
        return stored.evaluate(run, episodes=10 if episodes is None else episodes, seed=seed, env=env, device=device)
    positive(episodes=episodes)
    value = algorithm_of(texts)
    ground = text_again(texts, value, {"env": env})
    scores: dict[str, dict[str, list[float]]] = {}
    saved, problems = [], []
    for own in texts.about["seeds"]:
        learnt = speaker(texts, own, device or texts.about["device"])
        live = ground.begin(value, (own,), None, episodes or ground.episodes, asked_seed=seed, device=device or "cpu")
        live.learner.nets.load_state_dict(learnt.learner.nets.state_dict())
        for name, values in live.evaluate()[own].items():
            scores.setdefault(name, {})[str(own)] = values
        saved.append(learnt.count)
        problems += [problem for problem in learnt.problems if problem not in problems]
    return {"run": str(texts.folder), "scores": scores, "env_steps": min(saved), "problems": problems}


def export(
    run: str | Path | Run, out: str | Path, *, format: str | None = None, seed: int | None = None
) -> dict[str, Any]:
    """Write the policy of a run's last checkpoint into a new folder, without the run.

    Args:
        run: its folder.
        out: the new folder.
        format: "policy", weights and a description that `load` reads; "onnx", which needs the `onnx` extra; of a
            language model "huggingface", a folder that `transformers` and `--model` read, with adapters added in.
        seed: whose policy, of a run of several seeds; the first's when None.

    Returns:
        `{"run", "folder", "format", "files", "env_steps", "nets", "inputs", "outputs", "difference", "problems"}`.

    Raises:
        ValueError: there is no such format, or its packages are not installed.
        RunError: there is no such run, the folder exists or cannot be written, or the policy cannot be exported.
    """
    texts = _of_texts(run)
    if texts is None:
        return stored.export(run, out, format=format or FORMATS[0], seed=seed)
    if format not in (None, FOLDER):
        if format in FORMATS:
            raise RunError(texts.folder, "it is a language model", f"export it as {FOLDER}", "field 'model'")
        raise ValueError(f"there is no format {format!r}; {nearest(str(format), (FOLDER, *FORMATS))}")
    learnt = speaker(texts, seed)
    if "policy" not in learnt.learner.nets:
        raise RunError(
            texts.folder, "it learnt a reward model, which answers nothing", "use the run itself as a reward"
        )
    with new_folder(Path(out)) as folder:
        export_model(texts, folder, seed)
        files = sorted(path.name for path in folder.iterdir())
    nothing = dict.fromkeys(("inputs", "outputs", "difference"))
    about = {"run": str(texts.folder), "folder": str(out), "format": FOLDER, "files": files, "env_steps": learnt.count}
    return {**about, "nets": ["policy"], **nothing, "problems": list(learnt.problems)}
