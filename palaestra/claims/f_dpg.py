"""f-DPG: down the Jensen-Shannon divergence more answers come to satisfy a constraint than down KL(p || pi), as in DPG.

A tiny language model ends sentences; its target is what it says already, as far as at least two adjectives of an answer
are positive. Both arms see as many answers, and differ by the divergence alone.

Paper: Go et al., "Aligning Language Models with Preferences through f-divergence Minimization" (2023).
"""

from __future__ import annotations

from functools import partial

from palaestra.claims.claim import Claim, Scale
from palaestra.envs.text.sent import sent
from palaestra.envs.text.task import rows
from palaestra.expression import parse
from palaestra.factories.language import Tiny, made
from palaestra.learner import generator
from palaestra.rollout.texts import Given, generate, scored
from palaestra.text_ground import ASKED, text_ground

TASK, CONSTRAINT = sent(), "two_positive"
BASE = f"rloo(prompts=64, answers=4, lr=1e-3, longest={TASK.longest})+pointwise-constraint"
JUDGED = 1_000  # answers
PRETRAINING = 1_000  # updates; ten a round where there are few rounds


def satisfied(seed: int, budget: int, method: str) -> dict[str, list[float]]:
    """Whether answers of a policy, drawn after `budget` rounds, satisfy the constraint."""
    algorithm = parse(f"{BASE}+{method}(beta=1.0)")
    model = made(Tiny("sent:sent", layers=2, updates=min(PRETRAINING, 10 * budget)), name="sent-small")
    ground = text_ground(algorithm, model=model, env=TASK, reward=CONSTRAINT)
    run = ground.begin(algorithm, (seed,), None)
    while run.count < budget:
        run.advance()
    run.learner.check_finite()
    asked = Given(rows(TASK, JUDGED, ASKED), ground.model.tokenizer, ground.rewards)
    texts = scored(generate)(run.learner.nets, run.policy, asked, JUDGED, generator(seed, "judged"))
    return {"satisfied": texts.columns["reward"].tolist()}


CLAIM = Claim(
    slug="f-dpg",
    says="Minimising the Jensen-Shannon divergence makes more answers satisfy a constraint than forward KL does.",
    baseline=partial(satisfied, method="f-dpg-forward-kl"),
    treatment=partial(satisfied, method="f-dpg"),
    world="ends of sentences, at least two adjectives of which are to be positive (palaestra/Sent-v0)",
    measure="satisfied",
    scales={"smoke": Scale(steps=2, group=2, max_groups=1), "cpu": Scale(steps=100), "paper": Scale(steps=1_000)},
    differs="A model of 0.15 million parameters that ends synthetic sentences, in place of GPT-2; a constraint that "
    "two of five of its answers satisfy before it learns; 256 answers an update instead of 1,024, and 100 updates.",
    tried="One seed that is not among those compared, 100 rounds: with lr=1e-3 0.876 of the answers satisfy by "
    "Jensen-Shannon and 0.804 by forward KL, with lr=3e-4 0.804 and 0.788. The larger rate was taken, which was the "
    "better one for both.",
)
