"""Learning rates that end at nothing."""

import pytest
import torch

from palaestra.algorithms.annealing import annealed_lr
from palaestra.algorithms.dqn import dqn
from palaestra.algorithms.ppo import ppo
from palaestra.algorithms.sac import sac
from palaestra.expression import parse
from palaestra.learner import Learner
from tests.algorithms.test_neutral import TINY, after, assert_same
from tests.parts.worlds import batches, small, spec


@pytest.mark.parametrize(("base", "world"), [(sac, "continuous"), (dqn, "discrete")])
def test_over_more_updates_than_can_be_counted_it_is_the_base(base, world):
    given = batches(small(base.__name__), world)
    plain = base(**TINY, lr=2**-10)  # which float32 holds, as a rate that changes is a tensor
    assert_same(after(annealed_lr(plain, updates=2**62), world, given), after(plain, world, given))


def test_every_rate_falls_to_nothing_and_then_nothing_is_learnt():
    learner = Learner(annealed_lr(sac(lr=8e-3, **TINY), updates=4), spec("continuous"))
    given = batches(small("sac"), "continuous")
    seen = []
    for update in range(5):
        before = [p.clone() for p in learner.nets["actor"].parameters()]
        learner.update(given[update % len(given)])
        seen.append({name: o.param_groups[0]["lr"].item() for name, o in learner.optimisers.items()})
        still = all(map(torch.equal, before, learner.nets["actor"].parameters()))
        assert still == (update >= 3)
    expected = [6e-3, 4e-3, 2e-3, 0.0, 0.0]
    for name in ("critic", "actor", "entropy_coefficient"):
        assert [rates[name] for rates in seen] == pytest.approx(expected, abs=1e-9)


def test_a_rate_that_changes_already_is_refused():
    with pytest.raises(ValueError, match="the rate of its loss 'actor_critic' changes already"):
        annealed_lr(ppo(anneal_steps=1_000))
    with pytest.raises(ValueError, match="updates is 0; it must be larger than 0"):
        parse("sac+annealed-lr(updates=0)")
    with pytest.raises(ValueError, match=r"annealed-lr does not fit|both set"):
        parse("sac+annealed-lr+annealed-lr(updates=5)")
