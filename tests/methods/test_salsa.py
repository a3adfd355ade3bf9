"""SALSA: averages by hand, which reference is asked, and that a soup needs models of one origin."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch

from palaestra.algorithm import Unfit, changed_parts
from palaestra.data.tokenising import completion_ids, prompt_ids
from palaestra.data.tokens import token_columns
from palaestra.envs.text.add import add
from palaestra.envs.text.task import rows
from palaestra.expression import parse
from palaestra.factories.language import Tiny, learnt, untrained
from palaestra.functional.tokens import masked_mean
from palaestra.methods.language import salsa as file
from palaestra.methods.language.salsa import salsa
from palaestra.networks.language import LanguageModel
from palaestra.networks.pretrained import average_state_dicts, averaged, plain, pretrained, save
from palaestra.processes import Listen
from tests.parts.texts import TASK, batches, begin, run_of, textual

HOSTS = {"ppo-lm": "rollout", "grpo": "rollout", "rloo": "rollout", "dpo": "pairs", "kto": "labelled"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models that began differently."""
    found = []
    for seed in range(3):
        found.append(str(tmp_path_factory.mktemp(f"model{seed}")))
        save(LanguageModel(begin(seed).model), begin().tokenizer, found[-1])
    return tuple(found)


def lengths(given, answers):
    return [float(len(answer)) for answer in answers]


def of_reference(run):
    """What the reference says of the answers of a batch."""
    (batch,) = batches(run).values()
    return torch.where(batch["answer"], batch["reference_logp"], 0.0), batch


# ------------------------------------------------------------------------------------------------------------ averages


def test_averages_by_hand():
    states = [
        {"weight": torch.tensor([1.0, 2.0]), "count": torch.tensor(3)},
        {"weight": torch.tensor([5.0, -2.0]), "count": torch.tensor(4)},
    ]
    found = average_state_dicts(states, (0.75, 0.25))
    assert found["weight"].tolist() == [2.0, 1.0]  # 0.75 + 1.25, 1.5 - 0.5
    assert found["count"] == 3


def test_half_precision_is_added_up_in_float32():
    """1 + 2^-8 is no bfloat16, and half of it no more; of 256 models that differ so, the average is 1."""
    one, other = (torch.tensor([x], dtype=torch.bfloat16) for x in (1.0, 1.0078125))
    found = average_state_dicts([{"w": one}] * 3 + [{"w": other}], (0.25,) * 4)["w"]
    assert found.dtype == torch.bfloat16
    assert found.item() == torch.tensor(1.001953125).bfloat16().item()


def test_tied_weights_stay_tied():
    config = copy.deepcopy(begin().model.config)
    config.tie_word_embeddings = True
    with torch.random.fork_rng(devices=[]):
        models = [pretrained(type(begin().model)(config), begin().tokenizer) for _ in range(2)]
    made = averaged(models, (0.5, 0.5)).model
    embedding = [m.get_input_embeddings().weight for m in (models[0].model, models[1].model, made)]
    torch.testing.assert_close(embedding[2], (embedding[0] + embedding[1]) / 2)
    assert made.get_output_embeddings().weight is embedding[2]


def test_adapters_are_averaged_as_what_they_add():
    """B A of two adapters: the average of products is not the product of averages."""
    pytest.importorskip("peft")
    network = run_of(f"{textual('sft')}+lora(rank=2)").learner.nets["policy"]
    products = []
    models = []
    for seed in range(2):
        rng = torch.Generator().manual_seed(seed)
        for name, parameter in network.named_parameters():
            if ".lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=rng)
        models.append(pretrained(plain(network), begin().tokenizer))
        weight = models[-1].model.model.layers[0].mlp.up_proj.weight
        products.append(weight - begin().model.model.layers[0].mlp.up_proj.weight)
    assert products[0].abs().max() > 0.1
    added = averaged(models, (0.5, 0.5)).model.model.layers[0].mlp.up_proj.weight
    torch.testing.assert_close(added - begin().model.model.layers[0].mlp.up_proj.weight, sum(products) / 2)


def test_models_that_have_no_average():
    with pytest.raises(ValueError, match="two kinds have no average: only one of them has b"):
        average_state_dicts([{"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)}], (0.5, 0.5))
    with pytest.raises(ValueError, match=r"two sizes have no average: a is \(1,\) and \(2,\)"):
        average_state_dicts([{"a": torch.ones(1)}, {"a": torch.ones(2)}], (0.5, 0.5))
    other = untrained(add(digits=3), Tiny("add:add", hidden=16, layers=2, heads=2))
    tokens = copy.deepcopy(begin().tokenizer)
    tokens.add_tokens(["?"])
    with pytest.raises(ValueError, match=r"the tokenizers of .* differ"):
        averaged([begin(), type(other)(other.model, tokens, "other", "")], (0.5, 0.5))


# ----------------------------------------------------------------------------------------------------------- the seam


@pytest.mark.parametrize("base", HOSTS)
def test_with_all_of_the_share_it_is_the_base(base, folders):
    """The first model is the one that the policy began as: exactly the same updates."""
    given = {"reward": {"given": lengths}} if HOSTS[base] == "rollout" else {}
    plainly, whole, half = (
        run_of(f"{textual(base)}{changed}", **given)
        for changed in ("", f"+salsa(models={folders[:2]!r}, share=1.0)", f"+salsa(models={folders[:2]!r})")
    )
    for run in (plainly, whole, half):
        run.advance()
        run.advance()
    states = [run.learner.nets.state_dict() for run in (plainly, whole, half)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_the_soup_is_asked(folders):
    """A quarter of the first, three eighths of each other one; and the policy has no part in it."""
    run = run_of(f"{textual('rloo')}+salsa(models={folders!r}, share=0.25)", reward={"given": lengths})
    run.advance()
    found, batch = of_reference(run)
    state = average_state_dicts([begin(seed).model.state_dict() for seed in range(3)], (0.25, 0.375, 0.375))
    model = copy.deepcopy(begin().model)
    model.load_state_dict(state)
    expected = LanguageModel(model)(batch["ids"])["logp"]
    torch.testing.assert_close(found, torch.where(batch["answer"], expected, 0.0), atol=1e-5, rtol=1e-4)


def test_it_is_read_when_it_is_asked_and_once(folders, monkeypatch):
    file.soup.cache_clear()
    read: list[str] = []
    monkeypatch.setattr(file, "pretrained", lambda name, **given: (read.append(name), pretrained(name, **given))[1])
    algorithm = parse(f"{textual('rloo')}+salsa(models=('{folders[0]}', '{folders[1]}'))")
    assert changed_parts(parse(textual("rloo")), algorithm) == ("transforms",)
    assert parse(str(algorithm)) == algorithm
    run = run_of(algorithm, reward={"given": lengths})
    assert read == []
    run.advance()
    run.advance()
    assert read == list(folders[:2])
    assert set(run.algorithm.networks) == {"policy"}


def test_kto_asks_the_soup_of_other_answers_too(folders):
    changed = parse(f"{textual('kto')}+salsa(models={folders[:2]!r})")
    asked = [t.fn.keywords["model"] for t in (*changed.transforms, *changed.losses["policy"].transforms)]
    assert len(asked) == 2
    assert all(model.func is file.souped for model in asked)


def test_errors(folders, tmp_path):
    with pytest.raises(Unfit, match="asks no reference"):
        parse(f"grpo(kl_coefficient=0.0)+salsa(models={folders!r})")
    with pytest.raises(Unfit, match="asks no reference"):
        parse(f"td3()+salsa(models={folders!r})")
    with pytest.raises(ValueError, match="at least two folders"):
        salsa(parse("rloo()"), folders[:1])
    with pytest.raises(ValueError, match="at least two folders"):
        salsa(parse("rloo()"), folders[0])
    with pytest.raises(ValueError, match="share is 2; it must be between 0 and 1"):
        salsa(parse("rloo()"), folders, share=2)
    with pytest.raises(ValueError, match=r"nowhere is not there: give a folder"):
        run_of(f"{textual('rloo')}+salsa(models=('{folders[0]}', '{tmp_path}/nowhere'))").advance()
    strange = tmp_path / "strange"
    shutil.copytree(folders[0], strange)
    tokens = copy.deepcopy(begin().tokenizer)
    tokens.add_tokens(["?"])
    model = copy.deepcopy(begin().model)
    model.resize_token_embeddings(len(tokens))
    save(LanguageModel(model), tokens, strange)
    with pytest.raises(ValueError, match=r"the tokenizers of .* differ"):
        run_of(f"{textual('rloo')}+salsa(models=('{strange}', '{strange}'))").advance()


# ---------------------------------------------------------------------------------------------------- one basin or two


def silent(row: object) -> None:
    """Nobody listens."""


def told(model, asked):
    """What a model says of right answers: the mean over them of a token's log-probability."""
    columns = token_columns(
        [prompt_ids(model.tokenizer, row["prompt"]) for row in asked],
        [[completion_ids(model.tokenizer, row["answer"])] for row in asked],
    )
    with torch.no_grad():
        return float(masked_mean(LanguageModel(model.model)(columns["ids"])["logp"], columns["answer"]))


def test_a_soup_needs_models_of_one_origin():
    """Two fine-tuned from one are as good together as apart; two that began differently know nothing together."""
    listen: Listen = silent
    first = Tiny("add:add", hidden=32, layers=2, heads=2, updates=100, batch_size=32, demonstrations=2_000)
    then = replace(first, updates=20, lr=5e-4)

    def trained(start, how, seed):
        run = learnt(start, TASK, how, seed, listen)
        return pretrained(plain(run.learner.nets["policy"]), start.tokenizer)

    apart = [trained(untrained(TASK, first, seed), first, seed) for seed in range(2)]
    siblings = [trained(apart[0], then, seed) for seed in (2, 3)]
    asked = rows(TASK, 200, 10)
    alone = [told(model, asked) for model in apart]
    assert told(averaged(siblings, (0.5, 0.5)), asked) > min(told(each, asked) for each in siblings)
    assert told(averaged(apart, (0.5, 0.5)), asked) < min(alone) - 0.3
