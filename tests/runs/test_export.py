"""Exported policies act as the run does, here and in onnxruntime, and what is damaged is said."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

import palaestra as pal
from palaestra.deployed import Deployed, observations, read, write
from palaestra.envs.border import Border
from palaestra.expression import parse
from palaestra.learner import Learner
from palaestra.runs import RunError

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
from palaestra import onnx  # noqa: E402

SMALL = "(hidden=(8,))"
RAGGED = Box(np.array([-2, 0], np.float32), np.array([1, 5], np.float32))
WORLDS = {
    "numbers": (Box(-1, 1, (5,)), RAGGED),
    "doubles": (Box(-1, 1, (2, 3), np.float64), Box(-3, 3, (1,), np.float64)),
    "choices": (Discrete(5, start=2), Discrete(4, start=-3)),
    "several": (MultiDiscrete([3, 4], start=[1, 2]), MultiDiscrete([3, 2], start=[5, 0])),
    "masked": (Dict({"position": Box(-1, 1, (4,)), "symbol": Discrete(3), "action_mask": MultiBinary(4)}), Discrete(4)),
    "image": (Box(0, 255, (6, 6, 2), np.uint8), MultiBinary(2)),
    "camera": (Dict({"image": Box(0, 255, (36, 40, 3), np.uint8), "speed": Box(-9, 9, (1,))}), RAGGED),
}
FITTING = [
    ("sac", "numbers"), ("sac", "doubles"), ("sac", "camera"), ("td3", "numbers"), ("td3", "camera"),
    ("dqn", "choices"), ("dqn", "several"), ("dqn", "masked"), ("dqn", "image"), ("sac-discrete", "masked"),
]  # fmt: skip


def policy(base: str, world: str, **changes) -> Deployed:
    border = Border(*WORLDS[world])
    algorithm = dataclasses.replace(parse(base + SMALL), **changes) if changes else parse(base + SMALL)
    return Deployed(Learner(algorithm, border.spec, (3,)), border, 70)


def named(batch) -> dict[str, np.ndarray]:
    return batch if isinstance(batch, dict) else {"obs": batch}


def test_random_observations_allow_an_action():
    batch = observations(WORLDS["masked"][0], 200)
    assert batch["action_mask"].any(-1).all()
    assert np.array_equal(batch["position"], observations(WORLDS["masked"][0], 200)["position"])


@pytest.mark.parametrize(("base", "world"), FITTING)
def test_a_folder_acts_as_the_run_does(base, world, tmp_path):
    deployed = policy(base, world)
    body = write(deployed, tmp_path / "policy", {"env_steps": 70})
    loaded = pal.load(tmp_path / "policy")
    assert body["nets"] == (["critic"] if base == "dqn" else ["actor"])
    assert sorted(loaded.learner.nets) == sorted([*body["nets"], "clock"])
    assert loaded.env_steps == 70
    batch = observations(WORLDS[world][0], 9, seed=7)
    assert np.array_equal(loaded.act(batch), deployed.act(batch))


@pytest.mark.parametrize(("base", "world"), FITTING)
def test_an_onnx_model_acts_as_the_run_does(base, world, tmp_path):
    deployed = policy(base, world)
    body = onnx.write(deployed, tmp_path / "policy", {"env_steps": 70})
    session = onnxruntime.InferenceSession(tmp_path / "policy" / "policy.onnx")
    for rows in (1, 2, 300):
        batch = observations(WORLDS[world][0], rows, seed=7)
        (action,) = session.run(["action"], named(batch))
        wanted = deployed.act(batch)
        assert (action.shape, action.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_allclose(action, wanted, rtol=0, atol=1e-5)
        assert action[0] in WORLDS[world][1]
    assert [one["name"] for one in body["inputs"]] == list(named(batch))
    assert all(one["shape"][0] == "rows" for one in (*body["inputs"], *body["outputs"]))
    assert body["difference"] <= 1e-5


def remembering(nets, obs, memory, rng):
    """Acts on the running sum of the observations: [B, 5] of sums and [B] of counts."""
    sums = obs if memory is None else memory["inner"]["sums"] + obs
    count = torch.ones(obs.shape[0]) if memory is None else memory["count"] + 1
    return nets["actor"](sums / count.unsqueeze(-1)), {}, {"inner": {"sums": sums}, "count": count}


def test_a_policy_with_memory(tmp_path):
    deployed = policy("td3", "numbers", policy=remembering)
    body = onnx.write(deployed, tmp_path / "policy", {"env_steps": 70})
    assert [one["name"] for one in body["inputs"]] == ["obs", "memory.inner.sums", "memory.count"]
    assert [one["name"] for one in body["outputs"]] == ["action", "next_memory.inner.sums", "next_memory.count"]
    session = onnxruntime.InferenceSession(tmp_path / "policy" / "policy.onnx")
    memory = [np.zeros((2, 5), np.float32), np.zeros(2, np.float32)]
    for step in range(4):
        obs = observations(WORLDS["numbers"][0], 2, seed=step)
        action, *memory = session.run(None, dict(zip((i["name"] for i in body["inputs"]), [obs, *memory], strict=True)))
        np.testing.assert_allclose(action, deployed.act(obs), rtol=0, atol=1e-5)
    assert memory[1].tolist() == [4, 4]


def forgetful(nets, obs, memory, rng):
    """A fresh memory is not zeros."""
    memory = torch.ones(obs.shape[0], 1) if memory is None else memory
    return nets["actor"](obs + memory), {}, memory * 2


def test_a_memory_that_does_not_begin_at_zero_is_refused(tmp_path):
    with pytest.raises(RunError, match="zeros are not a fresh memory"):
        onnx.write(policy("td3", "numbers", policy=forgetful), tmp_path / "policy", {"env_steps": 70})
    assert list(tmp_path.iterdir()) == []


def by_numpy(nets, obs, memory, rng):
    return torch.from_numpy(np.tanh(obs.numpy()[:, :2])), {}, memory


def test_a_policy_that_onnx_cannot_hold(tmp_path):
    with pytest.raises(RunError, match=r"cannot be exported to ONNX: [^\n]+; export it as policy$"):
        onnx.write(policy("td3", "numbers", policy=by_numpy), tmp_path / "policy", {"env_steps": 70})
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_differs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "TOLERANCE", -math.inf)
    with pytest.raises(RunError, match="differs from PyTorch by"):
        onnx.write(policy("td3", "numbers"), tmp_path / "policy", {"env_steps": 70})
    assert list(tmp_path.iterdir()) == []


def behind(nets, obs, memory, rng):
    """Asks for a network in a way that cannot be seen."""
    return getattr(nets, "nets", nets)["actor"](obs), {}, memory


def test_a_policy_whose_networks_are_not_seen_is_refused(tmp_path):
    with pytest.raises(RunError, match="what was written does not act as the run does"):
        write(policy("td3", "numbers", policy=behind), tmp_path / "policy", {"env_steps": 70})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ of a run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    td3 = "td3(start=20,hidden=(8,),batch_size=8)"
    pal.train(td3, "palaestra/Pendulum-v0", 60, episodes=2, checkpoint_every=20, out=folder)
    return folder


def test_a_run_is_not_needed_to_load_it(run, tmp_path):
    told = pal.export(run, tmp_path / "policy")
    script = (
        "import palaestra as pal, numpy as np; loaded = pal.load('policy'); "
        "print(loaded.env_steps, loaded.act(np.array([1.0, 0.0, 0.5], np.float32)).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    wanted = pal.load(run).act(np.array([1.0, 0.0, 0.5], np.float32)).tolist()
    assert done.stdout == f"60 {wanted}\n"
    about = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert (about["run"], about["env"], about["seeds"]) == (
        json.loads((run / "run.json").read_text())["id"], "palaestra/Pendulum-v0", [0]
    )  # fmt: skip
    assert about["versions"]["torch"] == torch.__version__
    assert sorted(told["files"]) == ["policy.json", "weights.safetensors"]


def test_what_is_there_is_not_overwritten(run, tmp_path):
    for format in ("policy", "onnx"):
        (tmp_path / "policy").mkdir(exist_ok=True)
        (tmp_path / "policy" / "mine").write_text("")
        with pytest.raises(RunError, match="exists already; choose another --out"):
            pal.export(run, tmp_path / "policy", format=format)
        assert [path.name for path in (tmp_path / "policy").iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["policy.json", "weights.safetensors"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content.replace(b"0", b"1", 1),
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        None,
    ],
    ids=["truncated", "empty", "edited", "flipped", "missing"],
)
def test_damage(run, tmp_path, name, damage):
    pal.export(run, tmp_path / "policy")
    path = tmp_path / "policy" / name
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    with pytest.raises(RunError) as caught:
        read(tmp_path / "policy") if name == "policy.json" else pal.load(tmp_path / "policy")
    assert re.fullmatch(rf"[^\n]*{name}[^\n]*: (truncated|changed|missing|cannot be read)[^\n]*", str(caught.value))


def test_an_onnx_folder_is_not_loaded(run, tmp_path):
    pal.export(run, tmp_path / "policy", format="onnx")
    with pytest.raises(RunError, match="holds a policy as onnx; run it with onnxruntime"):
        pal.load(tmp_path / "policy")


def test_a_missing_package_names_the_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"onnxruntime; pip install 'palaestra\[onnx\]'"):
        pal.export(run, tmp_path / "policy", format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_unbounded_space_comes_back(tmp_path):
    border = Border(gym.spaces.Box(-np.inf, np.inf, (4,)), Discrete(2))
    deployed = Deployed(Learner(parse("dqn" + SMALL), border.spec), border)
    write(deployed, tmp_path / "policy", {"env_steps": 0})
    assert pal.load(tmp_path / "policy").border.observation == border.observation
