"""V-GPS: odds and values by hand, what is remembered, how it draws when deployed, that the clone stays what it was."""

import math

import pytest
import torch

import palaestra as pal
from palaestra.algorithm import Unfit, changed_parts
from palaestra.algorithms.bc import imitated
from palaestra.algorithms.iql import iql
from palaestra.data.files import write
from palaestra.deployed import observations
from palaestra.expression import parse
from palaestra.learner import Learner, generator
from palaestra.loops.offline import Offline
from palaestra.methods.offline.v_gps import in_sample_values, least_value, v_gps
from palaestra.rollout.reranking import frozen, reranked
from palaestra.runs import RunError
from tests.parts.worlds import dataset, make, spec

TINY = {"hidden": (8, 8)}
CLONE = "gaussian-bc(hidden=(8, 8))"
VALUED = f"{CLONE}+in-sample-values(hidden=(8, 8))"
WORTH = torch.tensor([1.0, 2.0, 5.0]).log()


def numbered(nets, obs, memory, rng):
    """Its candidates are 0, 1, 2, 0, ...; it draws, and does not look at what."""
    torch.randn(obs.shape[0], generator=rng)
    return torch.arange(obs.shape[0]) % 3, {}, memory


def valued(nets, obs, action):
    return WORTH[action]


@pytest.mark.parametrize("rng", [None, torch.Generator().manual_seed(0)])
@pytest.mark.parametrize(
    ("sharpness", "odds"),
    [(0.0, (1, 1, 1)), (1.0, (1, 2, 5)), (2.0, (1, 4, 25)), (math.inf, (0, 0, 1))],  # exp(s log v) = v^s
)
def test_each_candidate_is_taken_in_proportion_to_its_exponentiated_value(sharpness, odds, rng):
    rows = 30_000
    action, _, _ = reranked(numbered, valued, 3, sharpness)(None, torch.zeros(rows, 1), None, rng)
    share = torch.tensor(odds, dtype=torch.float64) / sum(odds)
    error = (share * (1 - share) / rows).sqrt()
    assert ((action.bincount(minlength=3) / rows - share).abs() <= 4 * error).all()


def normal(nets, obs, memory, rng):
    """Two numbers about the observation's, and three times as wide the second; the observation when `rng` is None."""
    noise = 0.0 if rng is None else torch.randn(obs.shape, generator=rng)
    return obs + noise * torch.tensor([1.0, 3.0]), {"noise": noise}, memory


def nothing(nets, obs, action):
    return torch.zeros(len(action))


def test_one_candidate_is_the_draw():
    """Also the next one: the choice among one draws nothing."""
    one, plain = (torch.Generator().manual_seed(3) for _ in range(2))
    act = reranked(normal, nothing, 1, 1.0)
    for _ in range(3):
        obs = torch.zeros(5, 2)
        action, columns, memory = act(None, obs, None, one)
        wanted, its, _ = normal(None, obs, None, plain)
        assert torch.equal(action, wanted)
        assert torch.equal(columns["noise"], its["noise"])
        assert memory is None


@pytest.mark.parametrize(("candidates", "sharpness"), [(1, 1.0), (1, math.inf), (4, 0.0)])
def test_what_is_neutral_acts_as_the_policy_draws(candidates, sharpness):
    """Deployed, where the policy would act most likely: mean and standard deviation of 20,000 draws."""
    action, _, _ = reranked(normal, nothing, candidates, sharpness)(None, torch.ones(20_000, 2), None, None)
    wide = torch.tensor([1.0, 3.0])
    assert ((action.mean(0) - 1).abs() < 4 * wide / 20_000**0.5).all()
    assert ((action.std(0) - wide).abs() < 4 * wide / 40_000**0.5).all()


def test_deployed_no_two_steps_are_the_same_and_two_policies_are():
    obs = torch.zeros(4, 2)
    walks = []
    for _ in range(2):
        act = reranked(normal, lambda nets, obs, action: action[:, 0], 3, 1.0)
        walks.append(torch.stack([act(None, obs, None, None)[0] for _ in range(3)]))
    assert torch.equal(*walks)
    assert len(walks[0].flatten().unique()) == walks[0].numel()
    assert torch.equal(normal(None, obs, None, None)[0], obs)


def remembering(nets, obs, memory, rng):
    """Remembers the sum of its actions and how many there were."""
    memory = memory or {"sum": torch.zeros_like(obs), "inside": {"count": torch.zeros(len(obs), dtype=torch.long)}}
    action = memory["sum"] + torch.randn(obs.shape, generator=rng)
    return action, {}, {"sum": memory["sum"] + action, "inside": {"count": memory["inside"]["count"] + 1}}


@pytest.mark.parametrize("rng", [None, torch.Generator().manual_seed(0)])
def test_memory_moves_on_once_a_step_with_the_action_that_is_taken(rng):
    act = reranked(remembering, lambda nets, obs, action: action[:, 0], 5, math.inf)
    memory, total = None, torch.zeros(3, 2)
    for step in range(1, 4):
        action, _, memory = act(None, torch.zeros(3, 2), memory, rng)
        total = total + action
        assert torch.equal(memory["sum"], total)
        assert memory["inside"]["count"].tolist() == [step] * 3


def test_what_cannot_be_reranked_says_why():
    with pytest.raises(Unfit, match="draws no actions"):
        reranked(lambda nets, obs, memory, rng: (obs, {}, memory), nothing, 3, 1.0)(None, torch.zeros(2, 2), None, None)

    def otherwise(nets, obs, memory, rng):
        return torch.randint(3, (len(obs),), generator=rng), {}, memory

    act = reranked(otherwise, nothing, 3, 1.0)
    with pytest.raises(ValueError, match=r"draws by randint; draw by torch\.rand or torch\.randn"):
        act(None, torch.zeros(2, 2), None, None)
    act(None, torch.zeros(2, 2), None, torch.Generator())  # by a generator of one's own anything goes


def test_the_value_is_the_smallest_of_the_ensemble():
    """Continuous: Q_0 = a_0 + a_1, Q_1 = 1 - a_0. Discrete: the entry of the action."""
    said = {"critic": lambda obs, action: torch.stack((action.sum(-1), 1 - action[:, 0]))}
    action = torch.tensor([[0.5, 0.25], [-1.0, 0.5]])  # 0.75 and 0.5; -0.5 and 2
    assert least_value(said, torch.zeros(2, 1), action).tolist() == [0.5, -0.5]
    table = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 0.0], [7.0, 3.0]]])  # member, row, choice
    assert least_value({"critic": lambda obs: table}, torch.zeros(2, 1), torch.tensor([1, 1])).tolist() == [0.0, 3.0]


def learnt(algorithm, seeds=(3,), updates=15):
    run = Offline(algorithm, dataset("continuous"), seeds)
    for _ in range(updates):
        run.advance()
    return run


def test_the_clone_is_what_it_is_without():
    """Bit for bit; and the values beside it are iql's, which do not read its actor either."""
    plain = learnt(parse(CLONE)).learner.nets.state_dict()
    guided = learnt(parse(f"{VALUED}+v-gps")).learner.nets.state_dict()
    for name in plain:
        assert torch.equal(plain[name], guided[name]), name
    its = learnt(iql(**TINY, gamma=0.98)).learner.nets.state_dict()
    for name in its.keys() - plain.keys():
        assert torch.equal(its[name], guided[name]), name
    assert not torch.equal(its["actor.log_std"], guided["actor.log_std"])
    assert its.keys() == guided.keys()


def test_on_a_base_with_values_only_the_deployment_changes():
    for base in ("iql", "cql", "sac", "xql", "rlpd", "sac-discrete", "iql-discrete"):
        algorithm = parse(f"{base}(hidden=(8, 8))")
        assert changed_parts(algorithm, v_gps(algorithm)) == ("deployment",)
    assert parse(str(v_gps(iql(), sharpness=None))) == v_gps(iql(), sharpness=None)
    clone = parse(CLONE)
    assert v_gps(clone) == v_gps(in_sample_values(clone))
    assert changed_parts(clone, v_gps(clone)) == ("networks", "deployment", "losses", "after_update")


@pytest.mark.parametrize("expression", [VALUED, "iql(hidden=(8, 8))"])
def test_stacked_seeds_are_deployed_as_each_alone(expression):
    algorithm = parse(f"{expression}+v-gps")
    together, obs = learnt(algorithm, (0, 1)), torch.rand(6, 5, generator=generator(0, "test"))
    policy, walk = together.learner.deployed(), []
    with torch.no_grad():
        for _ in range(2):
            walk.append(policy(together.learner.nets, obs.repeat(2, 1), None, None)[0].unflatten(0, (2, 6)))
        for i, seed in enumerate((0, 1)):
            alone = Learner(algorithm, together.border.spec, (seed,))
            alone.nets.load_state_dict(together.learner.nets_of(seed).state_dict())
            policy = alone.deployed()
            for step in walk:
                torch.testing.assert_close(policy(alone.nets, obs, None, None)[0], step[i])
    assert not torch.allclose(*walk)


def test_more_and_sharper_candidates_are_worth_more():
    nets = learnt(v_gps(iql(**TINY))).learner.nets
    obs = torch.rand(2_000, 5, generator=generator(0, "test"))
    with torch.no_grad():
        worth = [
            least_value(nets, obs, reranked(imitated, least_value, *setting)(nets, obs, None, None)[0]).mean().item()
            for setting in ((1, 1.0), (10, 0.0), (10, 30.0), (10, math.inf), (40, math.inf))
        ]
    assert worth[1] == pytest.approx(worth[0], abs=0.01)
    assert worth[1] < worth[2] < worth[3] < worth[4]


def run_of(expression, folder):
    data = folder.with_suffix(".hdf5")
    write(dataset("continuous"), data)
    return pal.train(expression, steps=12, dataset=str(data), evaluate_every=6, out=folder, seed=2)


def test_a_run_is_loaded_exported_and_refused_as_onnx(tmp_path):
    run = run_of(f"{VALUED}+v-gps", tmp_path / "run")
    assert all("fitted_q_value" in row["scores"] for row in run.metrics() if row["kind"] == "evaluation")
    obs = observations(pal.load(run).border.observation, 7)
    first, again = pal.load(run), pal.load(run)
    walk = [first.act(obs) for _ in range(2)]
    assert all((again.act(obs) == action).all() for action in walk)
    assert (walk[0] != walk[1]).any()
    body = pal.export(run, tmp_path / "policy")
    assert body["nets"] == ["actor", "critic"]
    assert (pal.load(tmp_path / "policy").act(obs) == walk[0]).all()
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with pytest.raises(RunError, match=r"gaussian-bc.*\+v-gps.*export it as policy"):
        pal.export(run, tmp_path / "onnx", format="onnx")


def test_a_policy_that_was_loaded_is_reranked_by_values_learnt_elsewhere(tmp_path):
    loaded = pal.load(run_of(CLONE, tmp_path / "run"))
    nets = learnt(iql(**TINY)).learner.nets
    obs = torch.rand(500, 5, generator=generator(0, "test"))
    its_own = frozen(loaded.policy, loaded.learner.nets)
    with torch.no_grad():
        likely = loaded.policy(loaded.learner.nets, obs, None, None)[0]
        one, best = (reranked(its_own, least_value, k, math.inf)(nets, obs, None, None)[0] for k in (1, 10))
        assert least_value(nets, obs, best).mean() > least_value(nets, obs, one).mean()
        assert torch.equal(loaded.policy(loaded.learner.nets, obs, None, None)[0], likely)
    assert best.shape == likely.shape
    assert best.abs().max() <= 1


@pytest.mark.parametrize("base", ["td3", "td3-bc", "dqn", "cql-discrete"])
def test_a_policy_that_draws_nothing_is_refused(base):
    with pytest.raises(ValueError, match=rf"v-gps does not fit {base}, whose policy draws nothing: choose gaussian-bc"):
        parse(f"{base}+v-gps")


def test_what_draws_nothing_where_actions_are_numbers_is_refused_when_it_acts():
    run = learnt(parse("bc(hidden=(8, 8))+in-sample-values(hidden=(8, 8))+v-gps"), updates=1)
    with pytest.raises(Unfit, match="must be stochastic"):
        run.evaluate(make("continuous"), 0)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: v_gps(iql(), candidates=0), "candidates is 0; it must be larger than 0"),
        (lambda: v_gps(iql(), sharpness=-1.0), "sharpness is -1.0; it must be between 0 and inf"),
        (lambda: in_sample_values(iql()), "iql, which has a network 'critic' already"),
        (lambda: parse("ppo+v-gps"), "ppo, which has a network 'critic' already"),
        (lambda: parse("decision-transformer+v-gps"), "decision-transformer: it has no replay of transitions"),
    ],
)
def test_errors(made, says):
    with pytest.raises(ValueError, match=says):
        made()


def test_choices_are_reranked_too():
    """A clone of discrete actions gets a critic of each of them."""
    nets = Learner(parse("bc(hidden=(8, 8))+in-sample-values(hidden=(8, 8))"), spec("discrete")).nets
    act = reranked(imitated, least_value, 30, math.inf)
    obs = torch.rand(50, 4, generator=generator(0, "test"))
    with torch.no_grad():
        best = nets["critic"](obs).amin(0).argmax(-1)
        assert torch.equal(act(nets, obs, None, None)[0], best)  # (2 / 3)^30: none of three choices is left out
