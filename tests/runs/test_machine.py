"""What a run computes on: recorded, honoured by a resume and an evaluation, and left as it was."""

import json
import os

import pytest
import torch

import palaestra as pal
from palaestra.machine import WORKSPACE, computing, resolved
from palaestra.runs import RunError

SMALL = "td3(start=20,hidden=(8,),batch_size=8)"
PENDULUM = "palaestra/Pendulum-v0"
CUDA = torch.cuda.is_available()


def now():
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark, os.environ.get(WORKSPACE)
    return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), *flags


def test_auto_is_a_gpu_where_there_is_one():
    assert resolved("auto") == ("cuda" if CUDA else "cpu")


@pytest.mark.parametrize("device", ["cuda:99", "potato", "meta"])
def test_a_device_that_cannot_be_used(device):
    with pytest.raises(ValueError, match=f"^device='{device}' cannot be used here .*; use cpu$"):
        resolved(device)


def test_computing_leaves_everything_as_it_was(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    before = now()
    with computing(threads=2, deterministic=True):
        assert now() == (2, True, True, False, ":4096:8")
        with computing():
            assert now() == (2, True, True, False, ":4096:8")
    assert now() == before
    with pytest.raises(KeyboardInterrupt), computing(deterministic=True):
        raise KeyboardInterrupt
    assert now() == before


def test_a_workspace_that_the_user_chose_stays(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with computing(deterministic=True):
        assert os.environ[WORKSPACE] == ":16:8"
    assert os.environ[WORKSPACE] == ":16:8"


def test_recorded_and_honoured(tmp_path):
    seen = []

    def look(row):
        if row["kind"] == "tick":
            seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))

    before = now()
    run = pal.train(
        SMALL, PENDULUM, 30, episodes=1, precision="bf16", threads=2, deterministic=True, out=tmp_path / "run",
        listen=look,
    )  # fmt: skip
    about = run.about
    assert [about[key] for key in ("device", "precision", "threads", "deterministic")] == ["cpu", "bf16", 2, True]
    pal.resume(run, 40, listen=look)
    assert set(seen) == {(2, True)}
    assert now() == before


def test_bf16_is_honoured_by_a_resume_and_an_evaluation(tmp_path):
    """Whole and resumed give the same numbers; another precision gives others."""
    settings = {"episodes": 2, "evaluate_every": 30, "checkpoint_every": 30, "log_every": 30}
    whole = pal.train(SMALL, PENDULUM, 60, precision="bf16", out=tmp_path / "whole", **settings)
    begun = pal.train(SMALL, PENDULUM, 30, precision="bf16", out=tmp_path / "begun", **settings)
    resumed = pal.resume(begun, 60)
    plain = pal.train(SMALL, PENDULUM, 60, out=tmp_path / "plain", **settings)

    def losses(run):
        return [row["loss/critic"] for row in run.metrics() if "loss/critic" in row]

    assert losses(resumed) == losses(whole) != losses(plain)
    about = json.loads((whole.folder / "run.json").read_text())
    exact = pal.evaluate(whole, episodes=2)["scores"]
    assert pal.evaluate(whole, episodes=2)["scores"] == exact
    (whole.folder / "run.json").write_text(json.dumps({**about, "precision": "float32"}))
    assert pal.evaluate(whole.folder, episodes=2)["scores"] != exact


def test_a_run_of_a_version_without_these_fields(tmp_path):
    run = pal.train(SMALL, PENDULUM, 30, episodes=1, out=tmp_path / "run")
    about = json.loads((run.folder / "run.json").read_text())
    for field in ("precision", "deterministic", "tensorboard"):
        del about[field]
    (run.folder / "run.json").write_text(json.dumps(about))
    problems = [(problem["where"], problem["what"]) for problem in pal.check(run.folder)["problems"]]
    assert problems == [(f"field {field!r}", "is missing") for field in ("precision", "deterministic", "tensorboard")]
    assert pal.resume(run.folder, 40).about["steps"] == 40


@pytest.mark.skipif(CUDA, reason="there is a GPU")
def test_a_run_of_a_gpu_where_there_is_none(tmp_path):
    run = pal.train(SMALL, PENDULUM, 30, episodes=1, out=tmp_path / "run")
    run.update(device="cuda")
    for again in (lambda: pal.resume(run.folder, 40), lambda: pal.evaluate(run.folder)):
        with pytest.raises(RunError, match="field 'device': device='cuda' cannot be used here"):
            again()
    assert len(pal.evaluate(run.folder, episodes=2, device="cpu")["scores"]["episode_return"]["0"]) == 2
    assert pal.load(run.folder).act(torch.zeros(3).numpy()).shape == (1,)


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_deterministic_run_on_a_gpu_repeats(tmp_path, precision):
    settings = {"episodes": 2, "device": "auto", "deterministic": True, "precision": precision, "log_every": 30}
    one, other = (pal.train(SMALL, PENDULUM, 60, out=tmp_path / name, **settings) for name in "ab")
    assert one.about["device"] == "cuda"

    def numbers(run):
        return [{key: value for key, value in row.items() if key != "seconds"} for row in run.metrics()]

    assert numbers(one) == numbers(other)
    resumed = pal.resume(one, 80)
    assert len(pal.evaluate(resumed, episodes=2)["scores"]["episode_return"]["0"]) == 2
    assert pal.export(resumed, tmp_path / "policy")["env_steps"] == 80
