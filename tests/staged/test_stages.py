"""Stages: what begins with what, what is skipped and what goes on, and the one line that a mistake is answered with."""

import json

import pytest
import torch

import palaestra as pal
from palaestra.envs.text.add import marked_add
from palaestra.runs.checkpoints import Checkpoints
from palaestra.speaker import speaker
from palaestra.staged import known, read, stages, tulu3_rlvr
from tests.parts.texts import begin, texts

SFT = "sft(lr=1e-3, batch_size=4, longest=5)"
PPO = "ppo-lm(lr=1e-3, prompts=4, epochs=1, longest=5)"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of a model and of texts, and where relative files do not lie."""
    made = begin()
    made.model.save_pretrained(tmp_path / "base")
    made.tokenizer.save_pretrained(tmp_path / "base")
    for kind in ("demonstrations", "pairs"):
        (tmp_path / f"{kind}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in texts(kind)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def written(folder, text):
    (folder / "stages.toml").write_text(text)
    return folder / "stages.toml"


THREE = f"""
episodes = 3
evaluate_every = 10

[[stage]]
name = "sft"
train = "{SFT}"
model = "base"
dataset = "demonstrations.jsonl"
steps = 3

[[stage]]
name = "preferred"
train = "reward-model(lr=1e-3, batch_size=4)"
from = "sft"
dataset = "pairs.jsonl"
steps = 2

[[stage]]
name = "rl"
train = "{PPO}"
from = "sft"
networks = {{ critic = "preferred.reward" }}
env = "palaestra/Add-v0"
rounds = 2
checkpoint_every = 1
"""


def nets(run, first=False):
    """The parameters in the last checkpoint of a run, or in its first."""
    checkpoints = Checkpoints(run.folder / "checkpoints")
    checkpoint = checkpoints.load(checkpoints.paths()[0]) if first else checkpoints.latest()
    return checkpoint.state["learner"]["nets"]


def same(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def test_each_begins_with_what_an_earlier_one_learnt(folder):
    told = []
    done = stages(written(folder, THREE), folder / "runs", listen=told.append)
    assert list(done) == ["sft", "preferred", "rl"]
    assert [run.about["status"] for run in done.values()] == ["finished"] * 3
    assert [row["finished"] for row in told if row["kind"] == "stage"] == [False] * 3
    assert done["rl"].about["model"] == str(folder / "runs" / "sft")
    assert done["rl"].about["begun_from"] == {"critic": str(folder / "runs" / "preferred:reward")}
    # What began: as the policy was judged before its first update, so the sft run's was after its last.
    rows = {name: [r for r in run.metrics() if r["kind"] == "evaluation"] for name, run in done.items()}
    first = rows["rl"][0]
    assert first["updates"] == 0
    prompts = [text["prompt"] for text in first["texts"]]
    assert [text["answer"] for text in first["texts"]] == speaker(done["sft"].folder).answers(prompts)


def test_a_network_begins_as_another_runs(folder, monkeypatch):
    """With a learning rate next to nothing it is what it began as."""
    tiny = THREE.replace(PPO, PPO.replace("1e-3", "1e-30"))
    done = stages(written(folder, tiny), folder / "runs")
    reward, critic = nets(done["preferred"]), nets(done["rl"])
    for name, value in reward.items():
        if name.startswith("reward."):
            assert torch.equal(critic[name.replace("reward.", "critic.", 1)], value), name
    policy, before = (speaker(done[name].folder).learner.nets["policy"].state_dict() for name in ("rl", "sft"))
    assert same(policy, before)


def test_what_is_finished_is_left_alone_and_the_rest_goes_on(folder):
    """Stopped within the last stage, and called again: bit for bit what an uninterrupted call gives."""
    file = written(folder, THREE)
    whole = stages(file, folder / "whole")

    def stop(row):
        if row["kind"] == "checkpoint" and row.get("rounds") == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages(file, folder / "runs", listen=stop)
    told = []
    done = stages(file, folder / "runs", listen=told.append)
    assert [row["finished"] for row in told if row["kind"] == "stage"] == [True, True, False]
    assert sum(row["kind"] == "begin" for row in told) == 1
    assert all(same(nets(whole[name]), nets(done[name])) for name in whole)
    told.clear()
    stages(file, folder / "runs", listen=told.append)
    assert [row["kind"] for row in told] == ["stage"] * 3


def test_runs_of_numbers_are_gone_on_with(tmp_path):
    td3 = "td3(start=20, hidden=(8,), batch_size=8)"
    common = {"train": td3, "env": "palaestra/Pendulum-v0", "steps": 40, "episodes": 1}
    done = pal.stages({"stage": [{"name": "a", **common}, {"name": "b", "from": "a", **common}]}, tmp_path)
    assert done["b"].about["begun_from"] == str(tmp_path / "a")


def test_rows_that_a_function_makes(folder, monkeypatch):
    asked = []

    def made(model):
        asked.append(model)
        return texts("demonstrations")

    monkeypatch.setattr(tulu3_rlvr, "demonstrations", made)
    text = THREE.replace('"demonstrations.jsonl"', '"palaestra.staged.tulu3_rlvr:demonstrations"')
    file = written(folder, text)
    done = stages(file, folder / "runs")
    assert asked == [str(folder / "base")]
    assert done["sft"].about["dataset"] == str(folder / "runs" / "sft.jsonl")
    assert [json.loads(line) for line in (folder / "runs" / "sft.jsonl").read_text().splitlines()] == texts(
        "demonstrations"
    )


# --------------------------------------------------------------------------------------------------------- mistakes

ONE = f'[[stage]]\nname = "one"\ntrain = "{SFT}"\nmodel = "base"\ndataset = "demonstrations.jsonl"\nsteps = 3\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "field 'stage': there are no stages"),
        ("stage = 3", "field 'stage': there are no stages"),
        ("[[stage]", "cannot be read as TOML"),
        (f'train = "sft"\n{ONE}', "field 'train': it is of one stage"),
        (ONE.replace("steps", "stps"), "stage 'one', field 'stps': there is no such field; did you mean steps"),
        (ONE.replace("steps = 3", "steps = '3'"), "stage 'one', field 'steps': it is '3'; it must be a whole number"),
        (ONE.replace("steps = 3", "rounds = 3"), "stage 'one', field 'train': .*does not collect in rounds"),
        (ONE.replace("sft(", "sfd("), "stage 'one', field 'train': there is no algorithm 'sfd'"),
        (ONE.replace('"one"', '"o/ne"'), "field 'name': give letters"),
        (ONE.replace('name = "one"\n', ""), "stage 'number 1', field 'name': it is missing"),
        (ONE + ONE, "stage 'one', field 'name'"),
        (ONE + 'from = "two"\n', "stage 'one', field 'model': it begins with what 'from' says"),
        (ONE.replace("model =", "from ="), "field 'from': no earlier stage is called 'base'"),
        (ONE + 'networks = { policy = "one.policy" }\n', "field 'networks': no earlier stage is called 'one'"),
        (ONE + ONE.replace('"one"', '"two"') + 'networks = { policy = "one" }\n', "'one' is no STAGE.NETWORK"),
    ],
)
def test_mistakes_name_file_stage_and_field(folder, text, said):
    with pytest.raises(ValueError, match=said) as wrong:
        stages(written(folder, text), folder / "runs")
    assert str(wrong.value).startswith(str(folder / "stages.toml"))
    assert "\n" not in str(wrong.value)
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"pairs.jsonl"', '"demonstrations.jsonl"', "stage 'preferred': .*chosen"),
        ("preferred.reward", "preferred.value", "stage 'rl': .*has no network 'value'"),
        ("critic =", "judge =", "stage 'rl': the algorithm has no network 'judge'"),
        ('"pairs.jsonl"', '"no.module:rows"', "stage 'preferred', field 'dataset': no.module:rows cannot be used"),
    ],
)
def test_what_a_stage_cannot_begin_with_is_told_with_its_name(folder, old, new, said):
    with pytest.raises(ValueError, match=said):
        stages(written(folder, THREE.replace(old, new)), folder / "runs")


def test_what_was_begun_is_not_changed_on_the_way(folder):
    file = written(folder, ONE)
    stages(file, folder / "runs")
    file.write_text(ONE.replace("1e-3", "1e-2"))
    with pytest.raises(ValueError, match=r"stage 'one', field 'train': it was 'sft\(lr=1e-3.* put it back"):
        stages(file, folder / "runs")
    file.write_text(ONE + ONE.replace('"one"', '"two"'))
    assert list(stages(file, folder / "runs")) == ["one", "two"]  # a stage more is no other stage


def test_a_name_that_is_not_there():
    with pytest.raises(
        ValueError, match="there is no such file; of those that come with palaestra did you mean tulu3-rlvr"
    ):
        stages("tulu3-rlv", "runs")


def test_one_seed_begins_with_single_networks():
    with pytest.raises(ValueError, match="give one seed"):
        pal.train(PPO, env="palaestra/Add-v0", rounds=1, model=begin(), begin_from={"critic": "x:y"}, seeds=[0, 1])


# ---------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", known())
def test_a_recipe_runs(name, folder):
    """From beginning to end, a few updates of each stage, with a model that knows nothing."""
    _, plan = read(name)
    for stage in plan["stage"]:
        stage |= {clock: 2 for clock in ("steps", "rounds") if clock in stage}
        stage |= {"episodes": 2}
        if "model" in stage:
            stage["model"] = str(folder / "base")
        if stage.get("dataset", "").endswith(":preferences"):  # of its own answers none is right
            stage["dataset"] = str(folder / "pairs.jsonl")
    done = stages(plan, folder / "runs")
    assert all(run.about["status"] == "finished" for run in done.values())
    speaker(list(done.values())[-1].folder).answer("4+5=")


def test_preferences_are_right_answers_and_wrong_ones(monkeypatch):
    """Of a speaker that adds one too many every other time."""

    class Says:
        def answers(self, prompts, seed):
            task = marked_add()
            rows = {row["prompt"]: row["answer"] for row in running_rows(task)}
            return [rows[prompt] if (seed + i) % 2 else "7" for i, prompt in enumerate(prompts)]

    def running_rows(task):
        return tulu3_rlvr.rows(task, tulu3_rlvr.PROMPTS, tulu3_rlvr.SEEDS["preferences"])

    monkeypatch.setattr(tulu3_rlvr, "speaker", lambda folder: Says())
    found = tulu3_rlvr.preferences("any")
    answers = {row["prompt"]: row["answer"] for row in running_rows(marked_add())}
    assert len(found) > tulu3_rlvr.PROMPTS * 0.9
    assert all(row["chosen"] == answers[row["prompt"]] != row["rejected"] == "7" for row in found)
