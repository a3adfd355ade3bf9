"""What every text task offers, its Gymnasium environment, and the space of strings."""

import json
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from palaestra.algorithm import Unfit
from palaestra.envs.border import Border, describe, undescribe
from palaestra.envs.make import make_vector
from palaestra.envs.registration import TEXTS, WORLDS
from palaestra.envs.state import get_state, set_state, state_problem
from palaestra.envs.text.add import add, marked_add
from palaestra.envs.text.chain import chain_sum
from palaestra.envs.text.countdown import countdown
from palaestra.envs.text.recall import key_value
from palaestra.envs.text.sent import sent
from palaestra.envs.text.sort import sort
from palaestra.envs.text.space import Language
from palaestra.envs.text.task import TextEnv, replaced, rows
from palaestra.inspection import listed

TASKS = {
    "add": add(),
    "add, 4 digits": add(digits=4),
    "add, scratchpad": add(digits=3, scratchpad=True),
    "marked add": marked_add(),
    "countdown": countdown(),
    "countdown, five": countdown(numbers=(2, 5), largest=9),
    "sent": sent(),
    "sent, long": sent(length=(32, 40)),
    "sort": sort(),
    "key-value": key_value(),
    "key-value, all": key_value(pairs=26, width=4),
    "chain sum": chain_sum(),
    "chain sum, checks": chain_sum(steps=(5, 5), checks=0.5),
}
every = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
corruptible = pytest.mark.parametrize("task", [task for task in TASKS.values() if task.corrupted], ids=lambda t: t.name)


@every
def test_rows_are_json_and_a_seeds_own(task):
    drawn = rows(task, 30, seed=3)
    assert json.loads(json.dumps(drawn)) == drawn
    assert drawn == rows(task, 30, seed=3)
    assert drawn[:10] == rows(task, 10, seed=3)  # fewer are the first of more
    assert drawn != rows(task, 30, seed=4)
    assert len({row["prompt"] for row in drawn}) > 20


@every
def test_symbols_are_all_that_prompts_and_answers_are_written_with(task):
    assert len(set(task.symbols)) == len(task.symbols) <= 120
    drawn = rows(task, 500, seed=0)
    for row in drawn:
        assert row["prompt"]
        assert row["answer"]
        assert {*task.tokens(row["prompt"]), *task.tokens(row["answer"])} <= {*task.symbols}
    lengths = [len(task.tokens(row["answer"])) + 1 for row in drawn]
    assert max(lengths) <= task.longest
    assert max(lengths) >= task.longest - 4  # the longest word of a sentence or expression is rare


@every
def test_demonstrations_are_worth_most_and_gold_is_in_0_to_1(task):
    drawn = rows(task, 300, seed=1)
    rewards = {name: reward(drawn, [row["answer"] for row in drawn]) for name, reward in task.rewards.items()}
    gold = next(iter(rewards.values()))
    assert all(0 <= value <= 1 for value in gold)
    if task.name == "sent":
        assert np.mean(gold) == pytest.approx(0.5, abs=0.06)  # positive and negative adjectives are as likely
        return
    for values in rewards.values():
        assert values == [1.0] * 300


@corruptible
def test_a_corrupted_demonstration_has_one_wrong_token_and_is_worth_less(task):
    drawn, rng = rows(task, 300, seed=2), np.random.default_rng(0)
    wrong = [task.corrupted(row, rng) for row in drawn]
    for row, text in zip(drawn, wrong, strict=True):
        left, right = task.tokens(row["answer"]), task.tokens(text)
        assert sum(a != b for a, b in zip(left, right, strict=True)) == 1
        assert {*right} <= {*task.symbols}
    assert next(iter(task.rewards.values()))(drawn, wrong) == [0.0] * 300
    assert [task.corrupted(row, np.random.default_rng(5)) for row in drawn[:9]] == [
        task.corrupted(row, np.random.default_rng(5)) for row in drawn[:9]
    ]


@every
def test_a_task_can_be_handed_to_another_process(task):
    there = pickle.loads(pickle.dumps(task))
    drawn = rows(there, 5, seed=0)
    assert drawn == rows(task, 5, seed=0)
    assert there.rewards == task.rewards


def test_replaced_changes_one_character_to_another_of_its_kind():
    rng = np.random.default_rng(0)
    found = {replaced("1+2", rng, ("12", "+-")) for _ in range(100)}
    assert found == {"2+2", "1-2", "1+1"}
    assert {replaced("1+2", rng, ("12", "+-"), begin=2) for _ in range(20)} == {"1+1"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: add(digits=0), "digits=0"),
        (lambda: marked_add(digits=0), "digits=0"),
        (lambda: countdown(numbers=(1, 4)), r"numbers=\(1, 4\): give the least, at least 2"),
        (lambda: countdown(numbers=(4, 3)), r"numbers=\(4, 3\)"),
        (lambda: countdown(largest=0), "largest=0"),
        (lambda: countdown(largest_target=0), "largest_target=0"),
        (lambda: sort(lengths=(0, 3)), r"lengths=\(0, 3\)"),
        (lambda: key_value(pairs=27), "pairs=27.*1 to 26"),
        (lambda: key_value(width=0), "width=0"),
        (lambda: chain_sum(steps=(3, 2)), r"steps=\(3, 2\)"),
        (lambda: chain_sum(checks=1.5), "checks=1.5"),
        (lambda: chain_sum(mistakes=-1), "mistakes=-1"),
        (lambda: add(mistakes=2), "mistakes=2"),
        (lambda: sent(length=(4, 20)), r"length=\(4, 20\): give the least, at least 5, and the most, at least 6 more"),
        (lambda: sent(length=(10, 15)), r"length=\(10, 15\)"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


# The environment.


@pytest.mark.parametrize("name", TEXTS)
def test_ids(name):
    env = gymnasium.make(name)
    check_env(env.unwrapped, skip_render_check=True)
    prompt, info = env.reset(seed=11)
    row = env.unwrapped.task.sample(np.random.default_rng(11))
    assert prompt == row["prompt"]
    assert info == {"row": row}
    obs, reward, terminated, truncated, info = env.step(row["answer"])
    rewards = {key: reward([row], [row["answer"]])[0] for key, reward in env.unwrapped.task.rewards.items()}
    assert (obs, reward, terminated, truncated) == ("", next(iter(rewards.values())), True, False)
    assert info == {"rewards": rewards}
    assert type(reward) is float
    env.reset()
    assert env.step("")[1] < 1  # an empty answer is an answer


def test_settings_are_keywords_of_make():
    env = gymnasium.make("palaestra/Add-v0", digits=5, scratchpad=True)
    assert env.reset(seed=0)[1]["row"]["answer"].count(";") == 5
    with pytest.raises(ValueError, match="digits=0"):
        gymnasium.make("palaestra/Add-v0", digits=0)


def test_one_answer_a_question():
    env = TextEnv(add())
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("1")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"must be in Language\(65536\), and it is 3"):
        env.step(3)
    env.step("1")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("1")


def test_copies_in_a_vector_environment():
    env = make_vector("palaestra/Sort-v0", 3)
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    prompts, _ = env.reset(seed=5)
    assert len(set(prompts)) == 3
    assert prompts[2] == gymnasium.make("palaestra/Sort-v0").reset(seed=7)[0]  # copy i is seeded with 5 + i
    right = "".join(sorted(prompts[0].removesuffix("=")))
    _, reward, terminated, *_ = env.step((right, "", "?"))
    assert reward.tolist() == [1, 0, 0]
    assert terminated.all()


def test_it_goes_on_from_a_saved_state():
    env, fresh = gymnasium.make("palaestra/Countdown-v0"), gymnasium.make("palaestra/Countdown-v0")
    _, info = env.reset(seed=0)
    assert state_problem(env) is None
    state = json.loads(json.dumps(get_state(env)))
    set_state(fresh, state)
    assert fresh.step(info["row"]["answer"])[1] == 1
    env.step("")
    assert [fresh.reset()[0] for _ in range(5)] == [env.reset()[0] for _ in range(5)]


def test_they_are_listed_but_are_no_worlds_for_control():
    titles = {row["slug"]: row["title"] for row in listed("envs")}
    assert titles["palaestra/Add-v0"] == "Sums of two numbers; text, one answer an episode"
    assert titles.keys() == {*WORLDS, *TEXTS}
    assert all(title.partition(";")[0] for title in titles.values())
    env = make_vector("palaestra/Add-v0")
    with pytest.raises(Unfit, match=r"observation space Language\(65536\) is not handled"):
        Border(env.single_observation_space, env.single_action_space)


# The space.


def test_any_string_that_is_not_too_long():
    space = Language(5)
    for text in ("", "a b", "3+4=?", "grün\n", "\0"):
        assert text in space
    for other in ("sixsix", 3, None, b"ab", ["a"]):
        assert other not in space
    with pytest.raises(ValueError, match="max_length=0"):
        Language(0)


def test_samples_lie_in_the_space_and_follow_its_seed():
    space, same = Language(12, seed=3), Language(12, seed=3)
    drawn = [space.sample() for _ in range(50)]
    assert drawn == [same.sample() for _ in range(50)]
    assert all(text in space for text in drawn)
    assert len(set(drawn)) == 50
    assert any(" " in text for text in drawn)
    with pytest.raises(ValueError, match="neither a mask nor probabilities"):
        space.sample(mask=1)


def test_equality_text_and_json():
    space = Language(7)
    assert space == Language(7)
    assert space != Language(8)
    assert space != gymnasium.spaces.Text(7)
    assert repr(space) == "Language(7)"
    assert not space.is_np_flattenable
    texts = ["a b", ""]
    assert space.from_jsonable(json.loads(json.dumps(space.to_jsonable(texts)))) == texts
    assert undescribe(json.loads(json.dumps(describe(space)))) == space
    both = gymnasium.spaces.Dict({"said": space})
    assert undescribe(describe(both)) == both
