"""The loop of rounds: what it records, counts, holds out and refuses."""

import pytest
import torch

import palaestra as pal
from palaestra.algorithm import Unfit, first_state, reprioritise
from palaestra.faults import NotFinite, RewardFailed
from palaestra.loops.rounds import rounds
from palaestra.text_ground import text_ground
from tests.parts.texts import TASK, begin, ground, run_of, texts, textual

from palaestra.expression import parse  # isort: skip


def recorded(run, steps, **periods):
    rows, saved, ticks = [], [], []
    rounds(run, steps, record=rows.append, save=lambda r: saved.append(r.count), tick=ticks.append, **periods)
    return rows, saved, ticks


def test_what_is_recorded():
    run = run_of(textual("grpo"))
    rows, saved, ticks = recorded(run, 5, evaluate_every=2, log_every=1, checkpoint_every=2)
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    assert [row["rounds"] for row in evaluations] == [0, 2, 4, 5]  # and before the first update
    assert [row["answers"] for row in evaluations] == [0, 16, 32, 40]
    assert all(len(row["scores"]["reward"]) == 3 for row in evaluations)
    assert set(evaluations[0]["texts"][0]) == {"prompt", "answer", "rewards"}
    trained = [row for row in rows if row["kind"] == "train"]
    assert [row["updates"] for row in trained] == [1, 2, 3, 4, 5]
    assert {"reward", "length", "ended", "kl", "tokens", "loss/policy", "rollout/mismatch"} <= set(trained[0])
    assert saved == [2, 4, 5]
    assert len(ticks) == 5


def test_answers_are_judged_as_they_are_drawn():
    def answers(method):
        run = run_of(f"{textual('grpo')}{method}")
        run.evaluate()
        return [said["answer"] for said in run.shown()]

    assert answers("+drawn-answers") == answers("+drawn-answers") != answers("+drawn-answers(seed=1)")
    assert answers("+drawn-answers") != answers("") == answers("")
    sharp = textual("grpo").replace("grpo(", "grpo(temperature=1e-6, ")
    drawn = run_of(f"{sharp}+drawn-answers")
    drawn.evaluate()
    assert [said["answer"] for said in drawn.shown()] == answers("")  # at no temperature a draw is the most likely one
    with pytest.raises(Unfit, match="drawn-answers does not fit reward-model"):
        parse("reward-model+drawn-answers")


def test_a_dataset_is_gone_through_in_updates():
    run = run_of(textual("dpo"), env=None)
    rows, saved, _ = recorded(run, 4, evaluate_every=4, log_every=4)
    assert (run.clock, run.count, saved) == ("updates", 4, [4])
    assert [row["scores"].keys() for row in rows if row["kind"] == "evaluation"] == [{"accuracy"}] * 2
    assert not any("rounds" in row for row in rows)


def test_some_rows_are_held_out_and_no_seed_learns_from_them():
    held = [run_of(textual("sft"), seed=seed, dataset=texts("demonstrations", 100)) for seed in (0, 1)]
    kept = [run.asked.held_out["demonstrations"] for run in held]
    assert len(kept[0]) == 5
    assert torch.equal(kept[0].columns["ids"], kept[1].columns["ids"])
    assert len(held[0].rows["demonstrations"]) == 95


def test_pieces_save_memory_and_change_nothing():
    whole, pieces = run_of(textual("grpo")), run_of(textual("grpo"), micro_batch=3)
    seen = []
    update = pieces.learner.update
    pieces.learner.update = lambda batches, split=1: seen.append(split) or update(batches, split=split)
    for run in (whole, pieces):
        run.advance()
    assert seen == [3]  # eight answers, three at a time
    for left, right in zip(whole.learner.nets.parameters(), pieces.learner.nets.parameters(), strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-4)


def test_adapters_alone_are_learnt():
    run = run_of(f"{textual('dpo')}+lora(rank=2)")
    before = {name: p.clone() for name, p in run.learner.nets.named_parameters()}
    for _ in range(2):  # in the first, what comes before the zeros has no gradient
        run.advance()
    changed = {name for name, p in run.learner.nets.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def test_a_reward_that_fails_stops_the_run():
    def wrong(rows, answers):
        return [float("nan")] * len(rows)

    run = run_of(textual("grpo"), reward={"mine": wrong})
    with pytest.raises(RewardFailed, match="the reward 'mine' gave nan at row 1"):
        run.advance()


def test_a_loss_that_is_not_finite_is_named():
    run = run_of(textual("sft"))
    with torch.no_grad():
        run.learner.nets["policy"].model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(NotFinite, match="loss/policy was not finite in update 1"):
        recorded(run, 2, log_every=1)


def test_what_is_refused():
    grpo, dpo = parse(textual("grpo")), parse(textual("dpo"))
    with pytest.raises(Unfit, match="seeds of language models are not stacked"):
        ground(grpo).begin(grpo, (0, 1), None)
    with pytest.raises(Unfit, match="learns from answers of its own: give prompts with a reward, or an environment"):
        ground(grpo, env=None).begin(grpo, (0,), None)
    with pytest.raises(Unfit, match="learns from a dataset of pairs: give one"):
        ground(dpo, dataset=None).begin(dpo, (0,), None)
    with pytest.raises(Unfit, match="learns from answers of its own: give --prompts or --env, not --dataset"):
        ground(grpo, dataset=texts("pairs"))
    with pytest.raises(ValueError, match="prompts are given without a reward"):
        ground(grpo, env=None, prompts=[{"prompt": "1+1="}])
    with pytest.raises(Unfit, match="CartPole-v1 is no environment of texts"):
        ground(grpo, env="CartPole-v1")
    with pytest.raises(Unfit, match="which is no dataset of texts"):
        text_ground(parse("td3-bc"), model=begin())
    states = first_state(grpo, object())
    with pytest.raises(Unfit, match="does not learn from texts: it chooses where episodes of an environment begin"):
        ground(states).begin(states, (0,), None)
    ranked = reprioritise(dpo, "pairs", object())
    with pytest.raises(Unfit, match="rows of pairs are all kept, and drawn in passes"):
        ground(ranked).begin(ranked, (0,), None)
    with pytest.raises(ValueError, match=r"longest=32 leaves no room for a prompt, since .* reads 32 tokens in all"):
        ground("grpo(longest=32)")
    for unread in ("grpo", "dpo"):
        with pytest.raises(Unfit, match="learns from texts: give a language model"):
            pal.train(unread, env="palaestra/Add-v0", **{"rounds" if unread == "grpo" else "steps": 1})
    assert ground(grpo).task is TASK
    assert begin().context == 32


def test_prompts_that_leave_no_room_are_refused():
    with pytest.raises(ValueError, match=r"row 2: it takes 30 tokens.*and the limit is 27"):
        ground(textual("grpo"), env=None, prompts=[{"prompt": "1+1="}, {"prompt": "1" * 30}], reward="exact_match")
