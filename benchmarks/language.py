"""Language models: are our losses TRL's, and how fast do they learn? Ours and TRL's.

    PEERS/bin/python benchmarks/language.py numbers --out docs/benchmarks     # both in one process
    python benchmarks/language.py speed --peers-python PEERS/bin/python --out docs/benchmarks
    python benchmarks/language.py speed --device cuda --peers-python PEERS/bin/python --out docs/benchmarks
    python benchmarks/language.py ours grpo                 # one measurement, one JSON line
    PEERS/bin/python benchmarks/language.py trl dpo
    python benchmarks/language.py profile grpo              # where the time of ours goes

`numbers` gives both sides the same weights, as folders that `save_pretrained` wrote, and the same texts, and compares a
loss and the gradient of every parameter. TRL's are those of its trainers, as they are made from a dataset and called by
their own training step; only the answers of a round are handed in in place of sampled ones. Policy, reference and (for
answers) the policy that sampled are three models, so that no ratio is 1 and no divergence is 0.

`speed` times whole steps: of GRPO the generation of 8 answers to each of 16 prompts, their rewards and the update; of
DPO an update on 16 pairs, with the reference's log-probabilities computed before the first one on both sides. Ours is
the loop of `palaestra train`, theirs `trainer.train()`, neither with evaluations or checkpoints. Tokens are those of
answers that were learnt from. Each measurement is a process of its own, see `contest.py`. `loaded_mb` is the most
memory that a process had held once its library was imported and the model loaded, `peak_mb` at its end.

On a GPU the model has half a billion parameters that mean nothing, answers are of 256 tokens, and both sides compute in
bf16 under autocast. The share of the peak counts six operations a parameter and token that is learnt from, prompts
included; two for the reference and two for sampling are added for GRPO; it is taken of the best bf16 products.
"""

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import contest

PROMPTS, ANSWERS, PAIRS = 16, 8, 16  # of a step
STEPS, WARM_UP = {"grpo": 10, "dpo": 60}, {"grpo": 2, "dpo": 10}
SCRATCH = Path(tempfile.gettempdir()) / "palaestra-language"
EQUAL = 1e-5  # differences below it, as a share, are rounding

Row = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """A model that has learnt nothing, and texts of random symbols.

    Args:
        shape: of the model, as `transformers` calls it.
        prompt, answer: least and most symbols.
        longest: tokens of a sampled answer.
        at_once: answers, or pairs, of a forward pass with gradient, at most.
        rows: of the dataset; the first `PAIRS` are those of `numbers`.
    """

    shape: dict[str, int]
    prompt: tuple[int, int]
    answer: tuple[int, int]
    longest: int
    at_once: int = PROMPTS * ANSWERS
    rows: int = 320


WORKLOADS = {
    # palaestra.factories.language.Tiny(hidden=128, layers=4): an answer ends by chance, after some 17 tokens.
    "cpu": Workload(
        {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512},
        (8, 24), (4, 60), 64,
    ),
    # As large as Qwen2.5-0.5B; of so large a vocabulary the end is never drawn.
    "cuda": Workload(
        {
            "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "intermediate_size": 4864, "vocab_size": 151_936,
        },
        (64, 128), (128, 256), 256, 16,
    ),
}  # fmt: skip


def prepared(device: str, folder: Path) -> tuple[Path, list[Row]]:
    """The folder of the model of a workload, and its rows; made where they are not there yet, by ours alone."""
    own, file = folder / device, folder / device / "rows.json"
    if not file.exists():
        import numpy as np
        import transformers

        from palaestra.envs.text.chain import chain_sum
        from palaestra.factories.language import tokenizer_of

        work, rng, task = WORKLOADS[device], np.random.default_rng(0), chain_sum()
        tokenizer = tokenizer_of(task)
        config = transformers.LlamaConfig(
            **{"vocab_size": len(tokenizer), **work.shape}, max_position_embeddings=512,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
            tie_word_embeddings="vocab_size" in work.shape,
        )  # fmt: skip
        transformers.set_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for part in (model, tokenizer):
            part.save_pretrained(own)

        def text(bounds: tuple[int, int]) -> str:
            return "".join(rng.choice(task.symbols, rng.integers(bounds[0], bounds[1] + 1)))

        parts = {"prompt": work.prompt, "chosen": work.answer, "rejected": work.answer}
        file.write_text(json.dumps([{name: text(of) for name, of in parts.items()} for _ in range(work.rows)]))
    return own, json.loads(file.read_text())


def worth(answers: list[str]) -> list[float]:
    """The reward: how much of an answer are digits."""
    return [sum(map(str.isdigit, answer)) / max(1, len(answer)) for answer in answers]


# ------------------------------------------------------------------------------------------------------------- speed

Progress = list[tuple[float, float, int]]  # the time, the processor's, and the tokens learnt from, after each step
EXPRESSIONS = {
    "grpo": f"grpo(lr=1e-6, prompts={PROMPTS}, answers={ANSWERS}, longest={{longest}})",
    "dpo": f"dpo(lr=1e-6, batch_size={PAIRS}, longest={{longest}})",
}


def held_mb() -> float:
    """The most memory that this process has held, and that the one had held that began it."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def our_run(algorithm: str, device: str, folder: Path, rows: list[Row]) -> tuple[Any, float]:
    """A run at its beginning, and the memory held when the model was loaded."""
    from palaestra.expression import parse
    from palaestra.networks.pretrained import pretrained
    from palaestra.text_ground import text_ground

    parsed = replace(parse(EXPRESSIONS[algorithm].format(longest=WORKLOADS[device].longest)), evaluation=())
    begin = pretrained(folder, device=device)
    loaded = held_mb()
    what: dict[str, Any] = {"dataset": rows}
    if algorithm == "grpo":
        prompts = [{"prompt": row["prompt"]} for row in rows]
        what = {"prompts": prompts, "reward": {"digits": lambda rows, answers: worth(answers)}}
    ground = text_ground(parsed, model=begin, device=device, micro_batch=WORKLOADS[device].at_once, **what)
    precision = "bf16" if device == "cuda" else "float32"
    return ground.begin(parsed, (0,), None, 1, device=device, precision=precision), loaded


def ours(algorithm: str, device: str, folder: Path, rows: list[Row], steps: int) -> tuple[Progress, float]:
    """The loop of `palaestra train`, and the memory held when the model was loaded."""
    from palaestra.loops.rounds import rounds

    run, loaded = our_run(algorithm, device, folder, rows)
    progress: Progress = []

    def record(row: Row) -> None:
        progress.append((contest.waited(device), time.process_time(), row["tokens"]))

    rounds(run, steps, record=record)
    return progress, loaded


def trl_of(kind: str, what: str) -> Any:
    """A class of TRL: the "Trainer" or the "Config" of a kind."""
    import trl
    from trl.experimental import cpo, orpo

    return getattr({"CPO": cpo, "ORPO": orpo}.get(kind, trl), kind + what)


def their_config(kind: str, device: str, **settings: Any) -> Any:
    """The configuration of one of TRL's trainers, with what is equal on both sides."""
    return trl_of(kind, "Config")(
        output_dir=str(SCRATCH / "trl"), report_to="none", save_strategy="no", disable_tqdm=True,
        use_cpu=device == "cpu", bf16=device == "cuda", gradient_checkpointing=False, learning_rate=1e-6,
        lr_scheduler_type="constant", **settings,
    )  # fmt: skip


def their_trainer(kind: str, model: Any, config: Any, rows: list[Row], tokenizer: Any, **more: Any) -> Any:
    """One of TRL's trainers, made from a dataset."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    data = Dataset.from_list(rows)
    return trl_of(kind, "Trainer")(model=model, args=config, train_dataset=data, processing_class=tokenizer, **more)


def their_model(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def theirs(algorithm: str, device: str, folder: Path, rows: list[Row], steps: int) -> tuple[Progress, float]:
    """`trainer.train()`, and the memory held when the model was loaded."""
    from transformers import AutoTokenizer, TrainerCallback

    trl_of(algorithm.upper(), "Trainer")  # imports what there is to import
    model, tokenizer = their_model(folder), AutoTokenizer.from_pretrained(folder)
    loaded, tokens, progress, work = held_mb(), 0, [], WORKLOADS[device]

    def reward(completions: list[str], completion_ids: list[list[int]], **others: Any) -> list[float]:
        nonlocal tokens
        tokens += sum(map(len, completion_ids))
        return worth(completions)

    class Timed(TrainerCallback):
        def on_step_end(self, *given: Any, **others: Any) -> None:
            progress.append((contest.waited(device), time.process_time(), tokens))

    if algorithm == "grpo":
        config = their_config(
            "GRPO", device, per_device_train_batch_size=work.at_once, num_generations=ANSWERS, beta=0.04,
            gradient_accumulation_steps=PROMPTS * ANSWERS // work.at_once, max_completion_length=work.longest,
            loss_type="grpo", max_steps=steps,
        )  # fmt: skip
        prompts = [{"prompt": row["prompt"]} for row in rows]
        trainer = their_trainer("GRPO", model, config, prompts, tokenizer, reward_funcs=reward, callbacks=[Timed()])
    else:
        config = their_config(
            "DPO", device, per_device_train_batch_size=PAIRS, precompute_ref_log_probs=True, max_steps=steps
        )
        trainer = their_trainer("DPO", model, config, rows, tokenizer, callbacks=[Timed()])
        collate = trainer.data_collator

        def collated(examples: list[Row]) -> Row:
            nonlocal tokens
            tokens += sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in examples)
            return collate(examples)

        trainer.data_collator = collated
    trainer.train()
    return progress, loaded


def parameters(model_folder: Path) -> int:
    """Those that a token is multiplied by."""
    from safetensors import safe_open

    with safe_open(model_folder / "model.safetensors", "pt") as file:
        sizes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    if "lm_head.weight" in sizes:  # embeddings are looked up; where they are the head too, they are multiplied by
        del sizes["model.embed_tokens.weight"]
    return sum(shape[0] * shape[1] for shape in sizes.values() if len(shape) == 2)


def measured(who: str, algorithm: str, device: str, at: Path, steps: int | None) -> Row:
    """One measurement: tokens a second, seconds a step, memory."""
    folder, rows = prepared(device, at)
    warm = WARM_UP[algorithm]
    run = ours if who == "ours" else theirs
    progress, loaded = run(algorithm, device, folder, rows, warm + (steps or STEPS[algorithm]))
    (began, busy, before), (ended, busy_then, after) = progress[warm - 1], progress[-1]
    count, peak = len(progress) - warm, held_mb()
    found = {
        "name": f"{algorithm} {who}",
        "tokens_per_s": round((after - before) / (ended - began), 1),
        "ms_per_step": round(1e3 * (ended - began) / count, 2),
        "ms_of_processor": round(1e3 * (busy_then - busy) / count, 2),
        "tokens_per_step": round((after - before) / count, 1),
        "loaded_mb": loaded,
        "peak_mb": peak,
        "increase_mb": round(peak - loaded, 1),
    }
    if device == "cuda":
        import torch

        mean = sum(len(row["prompt"]) for row in rows) / len(rows)
        prompts = mean * (PROMPTS * ANSWERS if algorithm == "grpo" else 2 * PAIRS)
        each = 2 * parameters(folder) * (5 if algorithm == "grpo" else 3)  # forward 1, backward 2; reference, sampling
        work = each * ((after - before) / count + prompts)
        found["tflops"] = round(work / (ended - began) * count / 1e12, 2)
        found["gpu_peak_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return found


def speed(device: str, repeats: int, peers_python: str, threads: int, steps: int | None, at: Path) -> Row:
    """Rounds of all contestants."""
    limits = (
        "--threads",
        str(threads),
        "--device",
        device,
        "--at",
        str(at),
        *(("--steps", str(steps)) if steps else ()),
    )
    pythons = {"ours": sys.executable, "trl": peers_python}
    commands: dict[str, tuple[str, ...]] = {
        f"{algorithm} {who}": (python, __file__, who, algorithm, *limits)
        for algorithm in STEPS
        for who, python in pythons.items()
    }
    if device == "cuda":
        commands["peak"] = (sys.executable, __file__, "peak", *limits)
    # In a process of its own: the memory that a process had held counts as held by those that it begins.
    subprocess.run([sys.executable, __file__, "prepare", *limits], check=True, stdout=subprocess.DEVNULL)
    load = round(os.getloadavg()[0], 2)
    found = contest.rounds(commands, repeats)
    return contest.about(sys.executable, peers_python) | {"threads": threads, "load": load, "rounds": found}


def profile(algorithm: str, device: str, at: Path, steps: int | None) -> None:
    """Where the time of our steps goes: by Python function, and by operation."""
    import cProfile
    import pstats

    from torch.profiler import profile as traced

    run, _ = our_run(algorithm, device, *prepared(device, at))
    for _ in range(WARM_UP[algorithm]):
        run.advance()
    with cProfile.Profile() as python:
        for _ in range(steps or STEPS[algorithm]):
            run.advance()
    pstats.Stats(python).sort_stats("cumulative").print_stats("palaestra|generation|modeling_llama", 30)
    with traced() as operations:
        run.advance()
    by = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    print(operations.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=40))


# ----------------------------------------------------------------------------------------------------------- numbers

KL, LONGEST = 0.04, 64
GROUPED = f"answers={ANSWERS}, longest={LONGEST}, epochs=2"  # twice: there is a ratio


@dataclass(frozen=True)
class Case:
    """A loss on both sides.

    Args:
        name: what it is called here.
        algorithm: makes ours.
        kind: of TRL's trainer.
        settings: of TRL's configuration.
        note: why the two differ, where they do.
    """

    name: str
    algorithm: Callable[[], Any]
    kind: str
    settings: dict[str, Any]
    note: str = ""


def cases() -> list[Case]:
    """All losses that both sides have."""
    from palaestra.algorithm import replace_term
    from palaestra.algorithms.grpo import group_advantage
    from palaestra.expression import parse
    from palaestra.functional import groups

    def ours(expression: str) -> Callable[[], Any]:
        return partial(parse, expression)

    def their_eps(expression: str) -> Any:
        return replace(
            parse(expression), advantage=partial(group_advantage, credit=partial(groups.standardised, eps=1e-4))
        )

    def prompts_too() -> Any:
        algorithm = parse("orpo")
        term = replace(algorithm.losses["policy"].terms["imitation"], share=each_token_of_chosen)
        return replace_term(algorithm, "policy", "imitation", term)

    eps = "the paper divides by the deviation alone, ours by it + 1e-6, TRL by it + 1e-4"
    kl = "; TRL multiplies the divergence by the ratio, as DeepSeek-V3.2, where GRPO's paper and ours do not"
    orpo = "the paper imitates the answer, as ours does; TRL imitates its prompt too"
    grouped = {"num_iterations": 2, "max_completion_length": LONGEST}
    grpo = {**grouped, "beta": KL, "loss_type": "grpo"}
    dapo = {**grouped, "beta": 0.0, "loss_type": "dapo", "epsilon_high": 0.28}
    dr_grpo = {**grouped, "beta": 0.0, "loss_type": "dr_grpo", "scale_rewards": "none"}
    our_grpo, our_dapo = f"grpo(kl_coefficient={KL}, {GROUPED})", f"dapo({GROUPED})"
    pairs = [
        ("dpo", "dpo", {"loss_type": "sigmoid"}),
        ("ipo", "ipo", {"loss_type": "ipo"}),
        ("dpo + hinge-link", "dpo+hinge-link(beta=0.1)", {"loss_type": "hinge"}),
        ("dpo + robust-link", "dpo+robust-link", {"loss_type": "robust", "label_smoothing": 0.1}),
        ("dpo + exo-link", "dpo+exo-link", {"loss_type": "exo_pair", "label_smoothing": 1e-3}),
        ("dpo + nca-link", "dpo+nca-link", {"loss_type": "nca_pair"}),
        ("dpo + bco-link", "dpo+bco-link", {"loss_type": "bco_pair"}),
        ("dpo + sppo-link", "dpo+sppo-link", {"loss_type": "sppo_hard"}),
        ("dpo + apo-zero-link", "dpo+apo-zero-link", {"loss_type": "apo_zero"}),
        ("dpo + apo-down-link", "dpo+apo-down-link", {"loss_type": "apo_down"}),
        ("dpo + aot", "dpo+aot", {"loss_type": "aot"}),
    ]
    return [
        *(Case(name, ours(expression), "DPO", settings) for name, expression, settings in pairs),
        Case("kto", ours("kto"), "KTO", {"loss_type": "kto"}),
        Case("simpo", ours("simpo"), "CPO", {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.0, "cpo_alpha": 0.0}),
        Case("cpo", ours("cpo"), "CPO", {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0}),
        Case("slic", ours("slic"), "CPO", {"loss_type": "hinge", "beta": 1.0, "cpo_alpha": 1.0}),
        Case("orpo", ours("orpo"), "ORPO", {"beta": 0.1}, orpo),
        Case("orpo, prompts imitated too", prompts_too, "ORPO", {"beta": 0.1}),
        Case("grpo", ours(our_grpo), "GRPO", grpo, eps + kl),
        Case("grpo, deviation + 1e-4", partial(their_eps, our_grpo), "GRPO", grpo | {"use_bias_correction_kl": False}),
        Case("dr-grpo", ours(f"dr-grpo({GROUPED})"), "GRPO", dr_grpo),
        Case("dapo", ours(our_dapo), "GRPO", dapo, eps),
        Case("dapo, deviation + 1e-4", partial(their_eps, our_dapo), "GRPO", dapo),
        Case("rloo", ours(f"rloo(kl_coefficient={KL}, {GROUPED})"), "RLOO", {**grouped, "beta": KL}),
    ]


def each_token_of_chosen(columns: Any) -> Any:
    """Every token of a chosen text but its first, that of its prompt too, counts the same: [B, T]."""
    import torch

    place = torch.arange(columns["ids"].shape[-1])
    counted = ((place > 0) & (place < columns["length"][:, :1])).to(columns["weight"].dtype)
    return counted / counted.sum()


def moved(folder: Path, to: Path, seed: int) -> Path:
    """The folder of a model whose weights are another's, each moved by a tenth of its matrix's deviation."""
    import torch

    model, rng = their_model(folder), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 * parameter.std() if parameter.dim() > 1 else 0.02
            parameter.add_(scale * torch.randn(parameter.shape, generator=rng))
    model.save_pretrained(to)
    return to


Found = tuple[float, dict[str, Any]]  # the loss, and the gradient of each parameter by its name


def gradients(loss: Any, model: Any) -> Found:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return float(loss), {name: value.grad.clone() for name, value in model.named_parameters()}


def our_loss(case: Case, models: tuple[Path, Path, Path], rows: list[Row], rewards: list[float]) -> Found:
    """Ours, of rows in their order."""
    import torch

    from palaestra.data.tokenising import encoded
    from palaestra.data.tokens import token_columns
    from palaestra.learner import _sum
    from palaestra.networks.pretrained import pretrained
    from palaestra.rollout.scorers import of_tokens
    from palaestra.text_ground import text_ground

    reference, sampler, policy = models
    algorithm, begin = case.algorithm(), pretrained(reference)
    answered = "rollout" in algorithm.buffers
    given: Row = {"dataset": rows}
    if answered:
        given = {"prompts": [{"prompt": row["prompt"]} for row in rows], "reward": {"given": worth}}
    run = text_ground(algorithm, model=begin, **given).begin(algorithm, (0,), None, 1)
    learner, net = run.learner, run.learner.nets["policy"]
    with torch.no_grad():
        if answered:
            net.model.load_state_dict(their_model(sampler).state_dict())
            texts = encoded(begin.tokenizer, rows, "demonstrations", limit=begin.context, file="")
            columns = token_columns(texts.prompts, texts.completions)
            said = of_tokens(net, columns["ids"])["logp"]
            group = torch.arange(len(rows)) // ANSWERS
            columns |= {"reward": torch.tensor(rewards), "group": group, "sampled_logp": said, "behaviour_logp": said}
            columns = run._transformed("rollout", columns)
            stream, columns = "rollout", {**columns, **algorithm.advantage(learner.nets, columns)}
        else:
            stream = run.streams[0]
            columns = algorithm.buffers[stream].layout(run.rows[stream], torch.arange(len(rows)), None)
        net.model.load_state_dict(their_model(policy).state_dict())
        loss = learner.algorithm.losses["policy"]
        batch = learner._completed(stream, columns)
        for transform in loss.transforms:
            batch = learner.transformed(transform, batch, learner._transforming)
    total, *_ = _sum(loss, learner.nets, {stream: batch}, None)
    return gradients(total, net.model)


def their_loss(case: Case, models: tuple[Path, Path, Path], rows: list[Row], rewards: list[float]) -> Found:
    """TRL's, of rows in their order."""
    import torch
    from transformers import AutoTokenizer

    reference, sampler, policy = models
    tokenizer = AutoTokenizer.from_pretrained(reference)
    config = partial(their_config, case.kind, "cpu", per_device_train_batch_size=len(rows), **case.settings)
    if case.kind in ("GRPO", "RLOO"):
        # It loads the reference from where its model came from.
        answers = [tokenizer(row["completion"] + tokenizer.eos_token).input_ids for row in rows]
        trainer = their_trainer(
            case.kind, their_model(reference), config(num_generations=ANSWERS),
            [{"prompt": row["prompt"]} for row in rows], tokenizer, reward_funcs=lambda **given: rewards,
        )  # fmt: skip
        trainer._generate_single_turn = lambda *given: (answers, None) if case.kind == "GRPO" else answers
        trainer.current_gradient_accumulation_steps = 1  # as `train` sets it
        trainer.model.load_state_dict(their_model(sampler).state_dict())
        trainer.model.train()
        with torch.no_grad():
            batch = trainer._generate_and_score_completions([{"prompt": row["prompt"]} for row in rows])
        trainer.model.load_state_dict(their_model(policy).state_dict())
    else:
        more = {"ref_model": their_model(reference)} if case.kind in ("DPO", "KTO") else {}
        trainer = their_trainer(case.kind, their_model(policy), config(), rows, tokenizer, **more)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
        trainer.model.train()
    return gradients(trainer.compute_loss(trainer.model, batch), trainer.model)


def compared(case: Case, models: tuple[Path, Path, Path], rows: dict[str, list[Row]], rewards: list[float]) -> Row:
    """How far apart the two are: the loss, above 1 as a share of it; gradients as a share of the largest entry."""
    kind = {"KTO": "labelled", "GRPO": "answers", "RLOO": "answers"}.get(case.kind, "pairs")
    (our, ours), (their, theirs) = (side(case, models, rows[kind], rewards) for side in (our_loss, their_loss))
    assert ours.keys() == theirs.keys()
    largest = max(float(value.abs().max()) for value in theirs.values())
    settings = ", ".join(f"{key}={value}" for key, value in case.settings.items() if key != "max_completion_length")
    return {
        "name": case.name,
        "trl": f"{case.kind}Trainer({settings})",
        "loss": our,
        "loss_apart": abs(our - their) / max(1.0, abs(their)),
        "gradient_apart": max(float((ours[name] - value).abs().max()) for name, value in theirs.items()) / largest,
        "note": case.note,
    }


def numbers(at: Path) -> Iterator[Row]:
    """Of every case."""
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    folder, pairs = prepared("cpu", at)
    sampler = moved(folder, at / "sampler", 1)
    models = folder, sampler, moved(sampler, at / "policy", 2)
    pairs = pairs[:PAIRS]
    rows = {
        "pairs": pairs,
        "labelled": [
            {"prompt": row["prompt"], "completion": row["chosen"], "label": i % 3 == 0} for i, row in enumerate(pairs)
        ],
        "answers": [
            {"prompt": pairs[i // ANSWERS]["prompt"], "completion": row["chosen"]} for i, row in enumerate(pairs)
        ],
    }
    rewards = worth([row["completion"] for row in rows["answers"]])
    for case in cases():
        found = compared(case, models, rows, rewards)
        apart = max(found["loss_apart"], found["gradient_apart"])
        verdict = "equal" if apart < EQUAL else found["note"] or "DIFFERENT"
        print(f"{case.name:28} {found['loss_apart']:.1e} {found['gradient_apart']:.1e}  {verdict}", file=sys.stderr)
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    limits = argparse.ArgumentParser(add_help=False)
    limits.add_argument("--threads", type=int, default=2)
    limits.add_argument("--device", choices=WORKLOADS, default="cpu")
    limits.add_argument("--at", type=Path, default=SCRATCH, help="the folder of models and texts")
    limits.add_argument("--steps", type=int, help="that are timed; fewer, to try it")
    commands = parser.add_subparsers(dest="what", required=True)
    for what in ("ours", "trl", "profile"):
        commands.add_parser(what, parents=[limits]).add_argument("algorithm", choices=STEPS)
    for what in ("prepare", "peak"):
        commands.add_parser(what, parents=[limits])
    command = commands.add_parser("speed", parents=[limits])
    command.add_argument("--repeats", type=int, default=5, help="rounds")
    command.add_argument("--peers-python", default=sys.executable, help="the Python that has trl")
    command.add_argument("--out", type=Path, help="the folder of results")
    command = commands.add_parser("numbers", parents=[limits])
    command.add_argument("--out", type=Path, help="the folder of results")
    options = parser.parse_args()

    device, at, steps = options.device, options.at, options.steps
    if options.what == "speed":
        result = speed(device, options.repeats, options.peers_python, options.threads, steps, at)
        contest.save(options.out, "language_speed" if device == "cpu" else "language_gpu", result)
        return
    contest.limit(options.threads)
    if options.what == "numbers":
        measured_numbers = list(numbers(at))
        contest.save(options.out, "language_numbers", contest.about() | {"losses": measured_numbers})
    elif options.what == "prepare":
        prepared(device, at)
    elif options.what == "peak":
        print(json.dumps({"name": "peak", "tflops": contest.product_rate(4096, device, dtype="bfloat16") / 1e3}))
    elif options.what == "profile":
        profile(options.algorithm, device, at, steps)
    else:
        print(json.dumps(measured(options.what, options.algorithm, device, at, steps)))


if __name__ == "__main__":
    main()
