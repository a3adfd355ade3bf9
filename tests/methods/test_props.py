"""PROPS: its equations by hand, what adapting does to a table, and what a run with it remembers."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from palaestra.algorithm import Nets, Unfit
from palaestra.algorithms.ppo import drawn, ppo
from palaestra.batch import Space, Spec
from palaestra.envs.make import make_vector
from palaestra.expression import parse
from palaestra.functional.distributions import Categorical, Normal
from palaestra.learner import generator
from palaestra.loops.online import Online, stacking_problem
from palaestra.methods.online.props import Adapted, adapt, crowding, props, robust_on_policy_sampling, sampling_error
from palaestra.together import choose
from tests.parts.worlds import make, small, spec

SMALL = "ppo(hidden=(8,), collect=32, epochs=2, minibatches=2)"
CARTPOLE = "palaestra/CartPole-v0"


class Table(nn.Module):
    """Logits of two actions in each of two states."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, obs):
        return Categorical(torch.log_softmax(self.logits[obs], -1))


def table(*logits):
    nets = Nets(Spec(Space((), torch.int64, (2,)), Space((), torch.int64, (2,))))
    nets["actor"] = Table(list(logits) or [[0.0, 0.0], [0.0, 0.0]])
    return nets


def steps(obs, action):
    n = len(obs)
    columns = {"obs": torch.tensor(obs), "action": torch.tensor(action), "reward": torch.zeros(n)}
    return {name: column.unsqueeze(1) for name, column in {**columns, "valid": torch.ones(n) > 0}.items()}


def phi_of(nets, algorithm):
    return algorithm.collect._phi(nets)


def adapted(nets, rows, method, **settings):
    """What the behaviour policy says of both actions in state 0 after one adaptation to the rows, and how it learnt."""
    phi = phi_of(nets, method(ppo(), **settings))
    adapt(phi, nets, rows, generator(0, "test"))
    return phi.nets["actor"].logits.detach(), phi


# ------------------------------------------------------------------------------------------------------- equations


def test_sampling_error_by_hand():
    counts = torch.tensor([[3.0, 1.0], [0.0, 0.0]])
    half = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    # 0.75 log(0.75 / 0.5) + 0.25 log(0.25 / 0.5) = 0.30410 - 0.17329; a state that was not seen counts nothing
    assert sampling_error(counts, half).item() == pytest.approx(0.130812, abs=1e-6)
    # states count as often as they were seen: (4 * 0.130812 + 4 * log 2) / 8
    assert sampling_error(torch.tensor([[3.0, 1.0], [4.0, 0.0]]), half).item() == pytest.approx(0.411980, abs=1e-6)
    assert sampling_error(torch.tensor([[3.0, 1.0]]), torch.tensor([[0.75, 0.25]]).log()).item() == pytest.approx(0)


def test_crowding_by_hand():
    rho = torch.tensor([0.5, 1.0, 1.5])
    batch = {"logp": rho.log() - 2.0, "old_logp": torch.full((3,), -2.0)}
    rows, columns = crowding(table(), batch, clip=0.3)
    # never below 0.7, and without a bound above; kl = (rho - 1) - log rho
    torch.testing.assert_close(rows, torch.tensor([0.7, 1.0, 1.5]))
    torch.testing.assert_close(columns["kl"], torch.tensor([0.193147, 0.0, 0.094535]), atol=1e-6, rtol=0)


def test_divergences_by_hand():
    one, other = (Categorical(torch.tensor(p).log()) for p in ([0.5, 0.5], [0.25, 0.75]))
    # 0.5 log 2 + 0.5 log(2 / 3)
    assert one.kl(other).item() == pytest.approx(0.143841, abs=1e-6)
    assert other.kl(other).item() == 0.0
    left = Normal(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0]))
    right = Normal(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0]).log())
    # log 2 + (1 + 1) / (2 * 4) - 1 / 2, and nothing for the second entry
    assert left.kl(right).item() == pytest.approx(0.443147, abs=1e-6)
    torch_kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(left.mean, left.log_std.exp()),
        torch.distributions.Normal(right.mean, right.log_std.exp()),
    )
    torch.testing.assert_close(left.kl(right), torch_kl.sum())


# -------------------------------------------------------------------------------------------------------- adapting


def test_one_gradient_step_by_hand():
    """The gradient of mean_D[log pi] in a softmax's logits is empirical - pi: here (0.75 - 0.5, 0.25 - 0.5)."""
    logits, _ = adapted(table(), steps([0, 0, 0, 0], [0, 0, 0, 1]), robust_on_policy_sampling, lr=2.0)
    torch.testing.assert_close(logits, torch.tensor([[-0.5, 0.5], [0.0, 0.0]]))


def test_rows_that_are_as_they_should_be_change_nothing():
    nets = table([0.0, torch.tensor(3.0).log().item()], [0.0, 0.0])
    logits, _ = adapted(nets, steps([0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 0, 1]), robust_on_policy_sampling)
    torch.testing.assert_close(logits, nets["actor"].logits.detach(), atol=1e-6, rtol=0)
    even = table()  # Adam makes a whole step of a rounding error: here there is none
    logits, phi = adapted(even, steps([0, 0, 1, 1], [0, 1, 0, 1]), props, minibatches=1)
    assert phi.updates == 16
    assert torch.equal(logits, even["actor"].logits)


def test_what_was_done_too_often_becomes_less_likely():
    logits, _ = adapted(table(), steps([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]), props, lr=0.02)
    assert logits[0, 0] < -0.01
    assert logits[0, 1] > 0.01
    assert logits[1, 1] < -0.01


def test_drift_ends_an_adaptation():
    rows = steps([0, 0, 0, 0], [0, 0, 0, 1])
    _, whole = adapted(table(), rows, props, target_kl=1e9, epochs=5, minibatches=2)
    assert whole.updates == 10
    _, stopped = adapted(table(), rows, props, lr=0.1, target_kl=1e-3, epochs=5, minibatches=1)
    # steps of Adam are about 0.1 a logit: rho = 1 / (1 + e^0.2) * 2 = 0.9003 and 1.0997 after the first, where
    # mean[(rho - 1) - log rho] = 0.75 * 0.00533 + 0.25 * 0.00467 = 0.0052 is too much
    assert stopped.updates == 2


def test_each_adaptation_begins_at_the_policy():
    nets = table()
    rows = steps([0, 0, 0, 0], [0, 0, 0, 1])
    logits, phi = adapted(nets, rows, robust_on_policy_sampling, lr=2.0)
    adapt(phi, nets, rows, generator(0, "test"))
    assert torch.equal(phi.nets["actor"].logits, logits)
    adapt(phi, nets, {}, generator(0, "test"))
    assert torch.equal(phi.nets["actor"].logits, nets["actor"].logits)


def test_a_divergence_that_costs_much_holds_it_back():
    rows = steps([0, 0, 0, 0], [0, 0, 0, 1])
    settings = {"target_kl": 1e9, "minibatches": 1, "lr": 0.01}
    free, _ = adapted(table(), rows, props, **settings)
    held, _ = adapted(table(), rows, props, kl_coefficient=100.0, **settings)
    assert held.abs().max() < free.abs().max() / 2


def draws(nets, policy, source, n, rng):
    with torch.no_grad():
        obs = torch.randint(2, (n,), generator=rng)
        return steps(obs.tolist(), policy(nets, obs, None, rng)[0].tolist())


def test_its_samples_have_a_smaller_error():
    errors = {}
    for name, method in {"policy": lambda a: a, "props": partial(props, every=8, lr=0.05, target_kl=0.05)}.items():
        errors[name] = 0.0
        for seed in range(3):
            nets = table([0.0, 1.0], [0.5, 0.0])
            rows = method(replace(ppo(), collect=draws)).collect(nets, drawn, None, 128, generator(seed, name))
            counts = torch.zeros(2, 2)
            counts.index_put_((rows["obs"].flatten(), rows["action"].flatten()), torch.ones(128), accumulate=True)
            errors[name] += sampling_error(counts, torch.log_softmax(nets["actor"].logits.detach(), -1)).item()
    assert errors["props"] < errors["policy"]


# ------------------------------------------------------------------------------------------------------------ runs


def run_of(expression, world=CARTPOLE, seeds=(0,), n=2):
    return Online(parse(expression), make_vector(world, n * len(seeds)), seeds)


def advanced(run, number):
    for _ in range(number):
        run.advance()
    return run


def captured(run):
    """The steps that each collection of a run gives from now on."""
    seen = []
    collect = run.algorithm.collect

    def watched(*args):
        seen.append(collect(*args))
        return seen[-1]

    run.algorithm = replace(run.algorithm, collect=watched)
    return seen


def test_another_policy_acts_and_old_log_probabilities_are_the_policys():
    run = run_of(f"{SMALL}+props(every=8, lr=0.01)")
    seen = captured(run)
    advanced(run, 1)
    acted = seen[0]["old_logp"]
    told = run.rollouts["rollout"].columns["old_logp"].view_as(acted)
    assert torch.equal(acted[:8], told[:8])  # nothing to adapt to yet
    assert (acted[8:] - told[8:]).abs().max() > 1e-3
    fresh = Online(parse(SMALL), make_vector(CARTPOLE, 2)).learner.nets["actor"]  # as it was when it collected
    flat = {name: seen[0][name].flatten(0, 1) for name in ("obs", "action")}
    torch.testing.assert_close(told.flatten(), fresh(flat["obs"]).log_prob(flat["action"]).detach())


def test_batches_are_kept_and_judged_anew():
    run = run_of(f"{SMALL}+props(every=16, batches=2)")
    seen = captured(run)
    advanced(run, 3)
    assert [len(columns["reward"]) for columns in seen] == [32, 64, 64]
    for before, after in pairwise(seen):
        assert torch.equal(after["obs"][:32], before["obs"][-32:])
        assert torch.equal(after["obs"][32], before["next_obs"][-1]) or after["first"][32].any()
    assert run.env_steps == 3 * 64  # two environments
    assert len(run.rollouts["rollout"].columns["reward"]) == 128


def test_a_run_goes_on_from_its_state():
    expression = f"{SMALL}+props(every=16, batches=2)"
    whole = advanced(run_of(expression), 2)
    state, rows = whole.state_dict(), {}
    other = run_of(expression)
    other.load_state_dict(state, rows)
    assert other.algorithm.collect.state_dict()["phi"] is not None  # before it collects, too
    for run in (whole, other):
        advanced(run, 2)
    ours, theirs = whole.learner.nets.state_dict(), other.learner.nets.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("order", ["normalised-obs+props(every=64)", "props(every=64)+normalised-obs"])
def test_it_adapts_on_what_the_actor_sees(order):
    run = advanced(run_of(f"{SMALL}+{order}"), 2)
    nets = run.learner.nets
    phi = phi_of(nets, run.algorithm)
    raw = run.algorithm.collect(nets, run.policy, run.source, 32, run.acting)  # one adaptation, so one policy
    seen = nets["obs_statistics"](raw["obs"])
    assert not torch.allclose(seen, raw["obs"], atol=0.1)
    batches = []
    update = phi.update
    phi.update = lambda batch: batches.append(batch["rollout"]) or update(batch)
    told = phi.nets["actor"](seen.flatten(0, 1)).log_prob(raw["action"].flatten()).view_as(raw["old_logp"])
    torch.testing.assert_close(told.detach(), raw["old_logp"])
    adapt(phi, nets, raw, generator(0, "test"))
    rows = torch.cat([batch["obs"] for batch in batches[:4]])
    assert torch.equal(rows.sort(0).values, seen.flatten(0, 1).sort(0).values)


def test_continuous_actions():
    run = Online(parse(f"{small('ppo', collect=16, minibatches=2)}+props(every=4)"), make("continuous"))
    advanced(run, 2)
    assert all(parameter.isfinite().all() for parameter in run.learner.nets.parameters())
    assert isinstance(run.learner.nets["actor"](torch.zeros(1, *spec("continuous").obs.shape)), Normal)


def test_its_seeds_run_apart():
    algorithm = parse(f"{SMALL}+props")
    assert isinstance(algorithm.collect, Adapted)
    assert stacking_problem(algorithm) == "it collects in a way of its own"
    with pytest.raises(Unfit, match="cannot be stacked"):
        run_of(f"{SMALL}+props", seeds=(0, 1))
    choice = choose(algorithm, None, (0, 1), "auto", workers=2)
    assert choice.way == "processes"


@pytest.mark.parametrize("base", ["td3", "dqn", "recurrent-ppo"])
@pytest.mark.parametrize("method", ["props", "robust-on-policy-sampling"])
def test_it_fits_ppo_alone(base, method):
    with pytest.raises(ValueError, match="policy of ppo"):
        parse(f"{base}+{method}")


@pytest.mark.parametrize("setting", ["every=0", "batches=0", "lr=0.0", "clip=-1.0", "target_kl=0.0", "minibatches=0"])
def test_settings_out_of_range(setting):
    name = setting.partition("=")[0]
    with pytest.raises(ValueError, match=f"{name} is .*; it must be larger than 0"):
        parse(f"ppo+props({setting})")
