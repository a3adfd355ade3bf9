"""A policy as a Q-function: exact in a small token MDP; a search against all answers that there are."""

from itertools import product

import pytest
import torch

from palaestra.algorithm import Unfit, changed_parts
from palaestra.algorithms.dpo import dpo, simpo
from palaestra.algorithms.grpo import grpo
from palaestra.algorithms.reward_model import reward_model
from palaestra.data.tokenising import prompt_ids
from palaestra.data.tokens import padded
from palaestra.expression import parse
from palaestra.functional.preferences import logistic
from palaestra.methods.preference.dpo_q_function import (
    dpo_q_function,
    gains_evaluated,
    implicit_token_reward,
    length_normalised_search,
    likelihood,
    logits_as_q,
    mean_likelihood,
    searched,
    soft_value,
)
from palaestra.networks.language import LanguageModel, Sampling, generated
from tests.parts.texts import begin, run_of, textual

# ------------------------------------------------------------------------------ a token MDP that is known exactly
# Four tokens, answers of five: a state is a beginning, and answers are numbers to the base of four.

WORDS, LENGTH, BETA = 4, 5, 0.5
STATES = [WORDS**t for t in range(LENGTH)]  # of every length
ANSWERS = torch.tensor(list(product(range(WORDS), repeat=LENGTH)))  # [1024, 5]


def tables(seed):
    """Numbers of every state and token: [4^t, 4] for each t."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(states, WORDS, generator=generator, dtype=torch.float64) for states in STATES]


def along(table):
    """What stands in a table at each token of all answers: [1024, 5]."""
    columns = [t[torch.arange(len(ANSWERS)) // WORDS ** (LENGTH - place)] for place, t in enumerate(table)]
    return torch.stack([c.gather(1, ANSWERS[:, i : i + 1])[:, 0] for i, c in enumerate(columns)], 1)


def solved(reward, reference):
    """Soft value iteration from the end: the log-probabilities and the values [4^t] of all states."""
    value, policy, values = torch.zeros(WORDS**LENGTH, dtype=torch.float64), [], []
    for r, ref in zip(reversed(reward), reversed(reference), strict=True):
        q = r + BETA * ref + value.view_as(r)
        value = soft_value(q, BETA)
        policy.insert(0, (q - value[:, None]) / BETA)
        values.insert(0, value)
    return policy, values


def preferred(reward, reference):
    """What DPO comes to on 20,000 pairs, each label as likely as Bradley and Terry say, from a table of zeros."""
    earned = along(reward).sum(1)
    i, j = torch.triu_indices(len(ANSWERS), len(ANSWERS), 1)
    keep = torch.randperm(len(i), generator=torch.Generator().manual_seed(0))[:20_000]
    i, j = i[keep], j[keep]
    wins = torch.sigmoid(earned[i] - earned[j])
    logits = [torch.zeros_like(t).requires_grad_() for t in reference]
    optimiser = torch.optim.LBFGS(logits, max_iter=150, history_size=100, line_search_fn="strong_wolfe",
                                  tolerance_grad=1e-10, tolerance_change=1e-16)  # fmt: skip

    def loss():
        optimiser.zero_grad()
        gain = (along([t.log_softmax(-1) for t in logits]) - along(reference)).sum(1)
        total = (wins * logistic(gain[i], gain[j], BETA) + (1 - wins) * logistic(gain[j], gain[i], BETA)).mean()
        total.backward()
        return total

    optimiser.step(loss)
    return [t.detach().log_softmax(-1) for t in logits]


def of_answers(policy):
    return along(policy).sum(1).exp()


REFERENCE = [t.log_softmax(-1) for t in tables(1)]


def test_dpo_comes_to_the_soft_optimum_and_its_log_ratios_are_rewards():
    """The pairs tie all answers together: it is the optimum of all of them, up to how far the search for it went."""
    reward = [0.5 * r for r in tables(2)]  # so that no label is nearly certain
    optimum, values = solved(reward, REFERENCE)
    learnt = preferred(reward, REFERENCE)
    assert (of_answers(learnt) - of_answers(optimum)).abs().sum().item() / 2 < 0.01
    columns = {"logp": along(learnt), "reference_logp": along(REFERENCE), "answer": torch.ones_like(ANSWERS).bool()}
    found = implicit_token_reward(columns, BETA)
    at = [v[torch.arange(len(ANSWERS)) // WORDS ** (LENGTH - place)] for place, v in enumerate(values)]
    before = torch.stack([*at, torch.zeros(len(ANSWERS), dtype=torch.float64)], 1)
    residual = found + before[:, :-1] - before[:, 1:] - along(reward)
    assert residual.abs().max() < 1e-3
    assert (found - along(reward)).abs().max() > 0.1  # a token's is not the reward itself
    # and of a whole answer the value of the start alone is missing
    assert torch.allclose(found.sum(1) + values[0], along(reward).sum(1), atol=1e-3)


def test_rewards_that_differ_by_a_potential_have_one_policy():
    """A reward of every token, the same shaped by a potential, and its sum at the end alone."""
    reward, potential = tables(2), [t[:, 0] for t in tables(3)]
    after = [*(p for p in potential[1:]), torch.zeros(WORDS**LENGTH, dtype=torch.float64)]
    shaped = [
        r + p.view_as(r) - before[:, None] for r, p, before in zip(reward, after, potential, strict=True)
    ]  # fmt: skip
    assert max((a - b).abs().max() for a, b in zip(shaped, reward, strict=True)) > 1
    (one, _), (other, _) = solved(reward, REFERENCE), solved(shaped, REFERENCE)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(one, other, strict=True))
    terminal = [torch.zeros_like(r) for r in reward[:-1]] + [along(reward).sum(1).view(-1, WORDS)]
    only_at_the_end, _ = solved(terminal, REFERENCE)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(one, only_at_the_end, strict=True))
    other_reward, _ = solved(tables(4), REFERENCE)
    assert not torch.allclose(one[0], other_reward[0], atol=0.1)


def test_ranking_by_likelihood_is_ranking_by_return_and_value():
    reward = tables(2)
    optimum, values = solved(reward, REFERENCE)
    penalised = (along(reward) + BETA * along(REFERENCE)).cumsum(1)[:, :-1]
    value = torch.stack([values[k][torch.arange(len(ANSWERS)) // WORDS ** (LENGTH - k)] for k in range(1, LENGTH)], 1)
    said = BETA * along(optimum).cumsum(1)[:, :-1] + values[0]
    assert torch.allclose(penalised + value, said, atol=1e-12)


def test_logits_are_q_up_to_a_number_of_each_state():
    reward = tables(2)
    optimum, values = solved(reward, REFERENCE)
    logits = optimum[2] + torch.linspace(-3, 3, STATES[2], dtype=torch.float64)[:, None]  # as a network may say it
    q = logits_as_q(logits, BETA)
    true = reward[2] + BETA * REFERENCE[2] + values[3].view_as(reward[2])
    assert torch.allclose(q - soft_value(q, BETA)[:, None], true - values[2][:, None], atol=1e-12)


def test_a_value_by_hand():
    # beta = 2: 2 log(e^(2/2) + e^(4/2)) = 2 (2 + log(1 + 1/e))
    found = soft_value(torch.tensor([2.0, 4.0]), 2.0)
    assert found.item() == pytest.approx(4 + 2 * torch.tensor(1 + torch.e**-1).log().item(), abs=1e-6)


def test_token_rewards_by_hand():
    columns = {
        "logp": torch.tensor([[[-1.0, -2.0, -9.0]], [[-0.5, -0.5, 0.0]]]),
        "reference_logp": torch.tensor([[[-1.5, -1.0, -1.0]], [[-0.5, -1.5, -7.0]]]),
        "answer": torch.tensor([[[True, True, False]], [[False, True, True]]]),
    }
    assert implicit_token_reward(columns, 0.5).tolist() == [[[0.25, -0.5, 0.0]], [[0.0, 0.5, 3.5]]]


# ---------------------------------------------------------------------------------------------------------- the search

END = begin().end


def asked(*prompts):
    ids, attention = padded([prompt_ids(begin().tokenizer, prompt) for prompt in prompts], left=True)
    return LanguageModel(begin().model), ids, attention


def every(network, prompt, longest):
    """All answers to a prompt, ended or as long as may be, with their log-probabilities."""
    size = int(network.model.config.vocab_size)
    words = [w for w in range(size) if w != END]
    answers = [
        (*begins, last)
        for length in range(1, longest + 1)
        for begins in product(words, repeat=length - 1)
        for last in (range(size) if length == longest else [END])
    ]
    ids, there = padded([[*prompt, *answer] for answer in answers])
    with torch.no_grad():
        logp = torch.cat([network(some)["logp"] for some in ids.split(512)])
    logp = (logp * there)[:, len(prompt) :].sum(1)
    return answers, logp


@pytest.mark.parametrize("score", [likelihood, mean_likelihood])
def test_with_enough_beams_the_best_of_all_answers_is_found(score):
    prompts = ["47+85=", "3+1="]
    network, ids, attention = asked(*prompts)
    found = searched(network, ids, attention, longest=3, end=END, beams=400, score=score)
    lengths = found["answer"].sum(1)
    for row, prompt in enumerate(prompts):
        answers, logp = every(network, prompt_ids(begin().tokenizer, prompt), 3)
        worth = score(logp, torch.tensor([len(answer) for answer in answers]))
        best = int(worth.argmax())
        assert tuple(found["ids"][row, : lengths[row]].tolist()) == answers[best]
        assert found["sampled_logp"][row].sum().item() == pytest.approx(logp[best].item(), abs=1e-4)
        assert (found["sampled_logp"][row] * ~found["answer"][row]).abs().sum() == 0


def test_more_beams_find_likelier_answers_and_other_ones():
    network, ids, attention = asked("47+85=", "3+1=", "12+7=", "90+90=", "1+55=")
    totals = [searched(network, ids, attention, 6, END, beams)["sampled_logp"].sum(1) for beams in (1, 64)]
    assert (totals[1] >= totals[0] - 1e-5).all()
    assert (totals[1] > totals[0] + 0.1).any()


def test_one_beam_takes_the_likeliest_token_at_each_place():
    network, ids, attention = asked("47+85=", "3+1=", "12+7=", "90+90=")
    greedy = generated(network, ids, attention, 6, END, Sampling(), None)
    for score in (likelihood, mean_likelihood):
        found = searched(network, ids, attention, 6, END, 1, score)
        assert torch.equal(found["ids"], greedy["ids"])
        assert torch.equal(found["answer"], greedy["answer"])
        assert torch.allclose(found["sampled_logp"], greedy["sampled_logp"], atol=1e-5)


def test_prompts_do_not_see_each_other():
    alone = searched(*asked("3+1="), 5, END, 4)
    beside = searched(*asked("3+1=", "47+85="), 5, END, 4)
    assert torch.equal(alone["ids"][0], beside["ids"][0])
    assert torch.allclose(alone["sampled_logp"][0], beside["sampled_logp"][0], atol=1e-5)


class Scripted(LanguageModel):
    """Says of the next token what stands in a table by the last one, whatever came before."""

    def __init__(self, table):
        torch.nn.Module.__init__(self)
        self.table, self.model = table, None

    @property
    def body(self):
        from transformers import DynamicCache

        def said(input_ids, past_key_values=None, **kwargs):
            return type("Said", (), {"last_hidden_state": input_ids, "past_key_values": DynamicCache()})

        return said

    def logits(self, features, temperature=1.0):
        return self.table[features] / temperature


def test_a_search_by_hand():
    """From 2: token 0 with 0.6, 1 with 0.4. After 0 all is uncertain, after 1 the end (3) is nearly sure.

    Greedily 0, then the end with 0.3: 0.18. With two beams 1 and the end: 0.4 * 0.9 = 0.36. By the mean log-probability
    of a token 1, 2, 1, end would be better still if it were kept: it has 0.4 * 0.1 * 0.4 * 0.9 and is not.
    """
    table = torch.tensor([[0.3, 0.2, 0.2, 0.3001], [0.0, 0.0, 0.1, 0.9], [0.6, 0.4, 0.0, 0.0], [0.25] * 4]).log()
    network, ids, attention = Scripted(table), torch.tensor([[2]]), torch.tensor([[1]])
    greedy, two = (searched(network, ids, attention, 4, 3, beams) for beams in (1, 2))
    assert greedy["ids"][0, :2].tolist() == [0, 3]
    assert two["ids"][0].tolist() == [1, 3, 3, 3]
    assert two["answer"].tolist() == [[True, True, False, False]]
    assert two["sampled_logp"].sum().exp().item() == pytest.approx(0.36, abs=1e-4)


def test_long_answers_are_at_no_disadvantage_by_the_mean():
    """The end comes at once with 0.6; else 0, and then nearly surely 0 again: 0.4 in all, or 0.4 ** (1 / 4) a token."""
    table = torch.tensor([[0.99, 0.005, 0.005], [0.4, 0.0, 0.6], [1 / 3] * 3]).log()
    network, ids, attention = Scripted(table), torch.tensor([[1]]), torch.tensor([[1]])
    by = {s: searched(network, ids, attention, 4, 2, 5, s)["ids"][0].tolist() for s in (likelihood, mean_likelihood)}
    assert by == {likelihood: [2, 2, 2, 2], mean_likelihood: [0, 0, 0, 0]}


# --------------------------------------------------------------------------------------------------------- as a method


@pytest.mark.parametrize("method", [dpo_q_function, length_normalised_search])
def test_one_beam_is_the_policy(method):
    base, one, more = (
        run_of(a, episodes=20)
        for a in (grpo(longest=5), method(grpo(longest=5), beams=1), method(grpo(longest=5), beams=16))
    )
    answers = []
    for run in (base, one, more):
        assert run.evaluate()[0]["reward"]
        answers.append([note["answer"] for note in run.asked.texts.notes])
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


def test_only_what_is_deployed_changes():
    assert changed_parts(dpo(), dpo_q_function(dpo())) == ("deployment",)
    algorithm = dpo_q_function(dpo(longest=5), beams=3)
    run = run_of(algorithm)
    obs = dict(zip(("ids", "attention"), asked("47+85=", "3+1=")[1:], strict=True))
    drawn, still = (
        policy(run.learner.nets, obs, None, torch.Generator().manual_seed(0))
        for policy in (run.learner.deployed(), run.learner.policy())
    )
    assert torch.equal(drawn[0], still[0])
    found, columns, _ = run.learner.deployed()(run.learner.nets, obs, None, None)
    assert found.shape == (2, 5)
    assert torch.equal(columns["behaviour_logp"], columns["sampled_logp"])


def test_a_temperature_is_the_policys():
    """It learns at that temperature, and so is searched at it: log-probabilities are those of its own."""
    run = run_of(dpo_q_function(parse(textual("grpo").replace(")", ", temperature=3.0)")), beams=4))
    _, ids, attention = asked("47+85=")
    _, columns, _ = run.learner.deployed()(run.learner.nets, {"ids": ids, "attention": attention}, None, None)
    expected = searched(run.learner.nets["policy"], ids, attention, 5, END, 4, temperature=3.0)
    assert torch.equal(columns["sampled_logp"], expected["sampled_logp"])


def test_gains_of_pairs_that_were_held_out():
    run = run_of(gains_evaluated(dpo(lr=3e-3, batch_size=4, longest=5)))
    before = run.evaluate()[0]
    assert before["chosen_gain"] == pytest.approx([0.0] * 12, abs=1e-5)
    for _ in range(20):
        run.advance()
    after = run.evaluate()[0]
    gap = torch.tensor(after["chosen_gain"]) - torch.tensor(after["rejected_gain"])
    assert (gap > 0).float().tolist() == after["accuracy"]
    assert gap.mean() > 0.5


def test_where_they_do_not_fit():
    for unfit in (parse("bc"), reward_model()):
        with pytest.raises(Unfit, match="dpo-q-function does not fit"):
            dpo_q_function(unfit)
    with pytest.raises(Unfit, match="length-normalised-search does not fit"):
        length_normalised_search(dpo_q_function(dpo()))
    for unfit in (simpo(), grpo(), parse("bc")):
        with pytest.raises(Unfit, match="gains-evaluated does not fit"):
            gains_evaluated(unfit)
    with pytest.raises(ValueError, match="beams is 0"):
        dpo_q_function(dpo(), beams=0)
