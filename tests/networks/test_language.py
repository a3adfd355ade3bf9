"""Language models: the same log-probabilities however rows are padded, packed or split; sampling; adapters; scalars."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig

from palaestra.algorithm import Unfit
from palaestra.networks import language
from palaestra.networks.language import (
    LanguageModel,
    Sampling,
    TokenScalars,
    adapted,
    adapters_of,
    generated,
    language_model,
    language_spec,
    reference,
    truncated,
    without_adapters,
)
from palaestra.networks.pretrained import plain
from tests.parts.texts import begin

LLAMA = LlamaConfig(
    vocab_size=30, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=30, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
GEMMA2 = Gemma2Config(
    vocab_size=30, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64, final_logit_softcapping=2.0,
)  # fmt: skip
SHORT, LONG = [5, 9, 2, 7, 11], [3, 8, 1, 4, 12, 6, 10]


@pytest.fixture(params=[LLAMA, GPT2, GEMMA2], ids=["llama", "gpt2", "gemma2"])
def model(request):
    """With positions that are learnt and not, and with logits that are capped; weights large enough to tell apart."""
    made = AutoModelForCausalLM.from_config(request.param)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return LanguageModel(made)


def alone(model, tokens, **asked):
    with torch.no_grad():
        return model(torch.tensor([tokens]), **asked)["logp"][0]


def test_a_row_says_the_same_alone_padded_and_packed(model):
    short, long = alone(model, SHORT), alone(model, LONG)
    assert long.std() > 0.1
    with torch.no_grad():
        right = model(torch.tensor([LONG, [*SHORT, 0, 0]]))["logp"]
        there = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
        masked = model(torch.tensor([LONG, [*SHORT, 0, 0]]), there)["logp"]
        left = model(torch.tensor([LONG, [0, 0, *SHORT]]), there.flip(1))["logp"]
        packed = model(torch.tensor([LONG, [*SHORT, 0, 0]]), length=torch.tensor([7, 5]))["logp"]
    for found, expected in [
        (right[0], long), (right[1, :5], short), (masked[1, :5], short), (left[0], long), (left[1, 3:], short[1:]),
        (packed[0], long), (packed[1, :5], short),
    ]:  # fmt: skip
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_is_said_is_what_the_model_itself_says(model):
    ids = torch.tensor([LONG])
    logits = model.model(input_ids=ids).logits.float() / 0.7
    expected = logits.log_softmax(-1)
    said = model(ids, temperature=0.7, entropy=True)
    torch.testing.assert_close(said["logp"][0, 1:], expected[0, :-1].gather(1, ids[0, 1:, None])[:, 0])
    torch.testing.assert_close(said["entropy"][0, 1:], -(expected.exp() * expected).sum(-1)[0, :-1])
    assert said["logp"][0, 0] == said["entropy"][0, 0] == 0


@pytest.mark.parametrize("length", [None, torch.tensor([7, 5])], ids=["padded", "packed"])
def test_pieces_of_logits_give_the_same_gradient(model, length, monkeypatch):
    """Held a few at a time, and computed again: log-probabilities and gradients as of all of them at once."""
    ids = torch.tensor([LONG, [*SHORT, 0, 0]])
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients():
        total = model(ids, entropy=True, length=length)
        return torch.autograd.grad(total["logp"].sum() + total["entropy"].sum(), parameters, allow_unused=True)

    whole = gradients()
    seen = []
    said = language.LanguageModel.logits

    def counted(self, features, temperature=1.0):
        seen.append(len(features))
        return said(self, features, temperature)

    monkeypatch.setattr(language, "LOGITS", 60)
    monkeypatch.setattr(language.LanguageModel, "logits", counted)
    for piece, expected in zip(gradients(), whole, strict=True):
        if expected is not None:
            torch.testing.assert_close(piece, expected, atol=1e-5, rtol=1e-4)
    assert max(seen) == 2
    assert sum(seen) == 2 * 12  # once forward, once for the gradient


def test_a_model_with_other_logits_is_refused():
    made = AutoModelForCausalLM.from_config(LLAMA)
    forward = made.forward
    made.forward = lambda **asked: type("Out", (), {"logits": forward(**asked).logits + 1})()
    with pytest.raises(Unfit, match="LlamaForCausalLM makes its logits in a way that is not known"):
        LanguageModel(made)


def test_dropout_stays_off():
    config = copy.deepcopy(GPT2)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.5
    model = LanguageModel(AutoModelForCausalLM.from_config(config)).train()
    assert torch.equal(alone(model, LONG), alone(model, LONG))


# -------------------------------------------------------------------------------------------------------- sampling


def prompts(rows=40):
    ids = torch.tensor([LONG, [0, 0, *SHORT]]).repeat(rows // 2, 1)
    return ids, torch.tensor([[1] * 7, [0] * 2 + [1] * 5]).repeat(rows // 2, 1)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.6), Sampling(1.3, top_k=4), Sampling(top_p=0.5)])
def test_what_was_sampled_is_as_likely_as_was_said(model, sampling):
    ids, attention = prompts()
    out = generated(model, ids, attention, 6, 1, sampling, torch.Generator().manual_seed(0))
    whole = torch.cat([attention, out["answer"].long()], 1)
    with torch.no_grad():
        said = model(torch.cat([ids, out["ids"]], 1), whole, temperature=sampling.temperature)["logp"][:, 7:]
    torch.testing.assert_close(out["sampled_logp"], said * out["answer"], atol=1e-5, rtol=1e-4)
    gap = (out["behaviour_logp"] - out["sampled_logp"])[out["answer"]]
    if sampling.truncates:
        assert (gap >= -1e-6).all()
        assert gap.max() > 0.1
    else:
        assert torch.equal(gap, torch.zeros_like(gap))


def test_an_answer_ends_with_the_first_end_and_no_later(model):
    ids, attention = prompts(200)
    out = generated(model, ids, attention, 8, 1, Sampling(2.0), torch.Generator().manual_seed(1))
    ended = 0
    for tokens, mask in zip(out["ids"].tolist(), out["answer"].tolist(), strict=True):
        length = tokens.index(1) + 1 if 1 in tokens[: sum(mask)] else 8
        assert mask == [True] * length + [False] * (8 - length)
        ended += length < 8
    assert 0 < ended < 200


def test_without_a_generator_the_most_likely_token_follows(model):
    ids, attention = prompts(2)
    out = generated(model, ids, attention, 3, 1, Sampling(), None)
    tokens = list(LONG)
    for token in out["ids"][0].tolist():
        with torch.no_grad():
            expected = int(model.model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
        assert token == expected
        if token == 1:
            break
        tokens.append(token)


def test_the_same_stream_gives_the_same_answers(model):
    first, second, other = (
        generated(model, *prompts(), 6, 1, Sampling(), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first["ids"], second["ids"])
    assert not torch.equal(first["ids"], other["ids"])


def test_truncation():
    """By hand, of probabilities 0.5, 0.25, 0.15, 0.1: the two largest sum to 0.75, so that each is divided by it; and
    0.6 of the probability needs the same two."""
    logp = torch.tensor([0.25, 0.5, 0.1, 0.15]).log()
    for sampling in (Sampling(top_k=2), Sampling(top_p=0.6)):
        torch.testing.assert_close(truncated(logp, sampling).exp(), torch.tensor([1 / 3, 2 / 3, 0, 0]))
    torch.testing.assert_close(truncated(logp, Sampling(top_p=0.5)).exp(), torch.tensor([0.0, 1, 0, 0]))
    torch.testing.assert_close(truncated(logp, Sampling(top_k=9)), logp)


# ----------------------------------------------------------------------------------- adapters, references, numbers


def test_an_adapted_model_has_its_reference_in_itself():
    spec = language_spec(begin())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = adapted(language_model(), 2, 4, None)(spec, None)
    assert len(adapters_of(network)) == 2 * 7  # two layers, seven matrices each
    ids = torch.tensor([SHORT])
    with torch.no_grad():
        before = LanguageModel(begin().model)(ids)["logp"]
        torch.testing.assert_close(network(ids)["logp"], before)
        for name, parameter in network.named_parameters():
            assert parameter.requires_grad == ("lora_" in name)
            if "lora_B" in name:
                parameter.fill_(0.1)
        assert (network(ids)["logp"] - before).abs().max() > 0.01
        with without_adapters(network):
            torch.testing.assert_close(network(ids)["logp"], before)
        merged = LanguageModel(plain(network))(ids)["logp"]
        torch.testing.assert_close(merged, network(ids)["logp"], atol=1e-5, rtol=1e-5)

    class Both(dict):
        pass

    nets = Both(policy=network)
    nets.spec = spec
    with reference(nets) as model, torch.no_grad():
        assert model is network
        torch.testing.assert_close(model(ids)["logp"], before)


def test_scalars_are_read_at_their_token():
    network = TokenScalars(copy.deepcopy(begin().model))
    with torch.no_grad():
        long, padded = (
            network(torch.tensor([LONG]))[0],
            network(torch.tensor([[0, 0, *LONG]]), torch.tensor([[0] * 2 + [1] * 7])),
        )
        torch.testing.assert_close(padded[0, 2:], long, atol=1e-5, rtol=1e-5)
        cut = network(torch.tensor([LONG[:4]]))[0]
        packed = network(torch.tensor([[LONG, [*LONG[:4], *SHORT[:3]]]]), length=torch.tensor([[7, 5]]))[0]
    torch.testing.assert_close(cut, long[:4])  # nothing that follows is seen
    torch.testing.assert_close(packed[0], long)
    torch.testing.assert_close(packed[1, :4], long[:4])
    assert packed[1, 4] != long[4]
    # The standard deviation is 1 / sqrt(16 + 1).
    assert abs(float(network.head.weight.detach().std()) * 17**0.5 - 1) < 0.4
    assert torch.equal(TokenScalars(copy.deepcopy(begin().model), 0.0)(torch.tensor([LONG])), torch.zeros(1, 7))


def test_texts_that_are_packed_learn_as_alone(model):
    """With their lengths, texts say the same of their tokens, and nothing of what is behind them; pairs that begin
    alike, all of the one in the other, in part, or not, too."""
    pairs = (LONG, LONG[:5]), (LONG[:6], [*LONG[:3], *SHORT[:2]]), (SHORT[:2], LONG[:3]), (SHORT, SHORT)
    ids = torch.tensor([[[*row, *[0] * (7 - len(row))] for row in pair] for pair in pairs])
    length = torch.tensor([[len(row) for row in pair] for pair in pairs])
    there = torch.arange(7) < length[..., None]
    parameters = [p for p in model.parameters() if p.requires_grad]
    whole, packed = model(ids, entropy=True), model(ids, entropy=True, length=length)
    for name in ("logp", "entropy"):
        assert packed[name].shape == ids.shape
        torch.testing.assert_close(packed[name] * there, whole[name] * there, atol=1e-5, rtol=1e-5)
        gradients = [
            torch.autograd.grad((said[name] * there).sum(), parameters, allow_unused=True, retain_graph=True)
            for said in (whole, packed)
        ]
        for left, right in zip(*gradients, strict=True):
            if left is not None:
                torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)
    assert not (packed["logp"] * ~there).any()


def test_models_that_can_are_packed(model):
    """Gemma 2's attention has a window and a cap, which ours has not."""
    assert model.packs == (not isinstance(model.model.config, Gemma2Config))


def test_a_model_whose_layers_are_not_told_is_not_packed():
    """Neither one whose layers ask for another attention, nor one whose layers pass on nothing."""
    made = AutoModelForCausalLM.from_config(LLAMA)
    for layer in made.model.layers:
        layer.self_attn.config = copy.deepcopy(LLAMA)
        layer.self_attn.config._attn_implementation = "sdpa"
    assert not LanguageModel(made).packs
    made = AutoModelForCausalLM.from_config(LLAMA)
    for layer in made.model.layers:
        forward = layer.self_attn.forward
        layer.self_attn.forward = lambda *given, packing=None, own=forward, **named: own(*given, **named)
    assert not LanguageModel(made).packs
