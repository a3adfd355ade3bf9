"""Write docs/reference/: one page for each listed base and method, and an index. `make docs` runs it.

What a page says comes from the code alone: the docstrings of the function and of its module, the signature, and what
the built value is made of. The pages are not committed.
"""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from palaestra.algorithm import Algorithm, Unfit, changed_parts
from palaestra.batch import Space, Spec
from palaestra.claims import CLAIMS
from palaestra.claims.claim import Claim
from palaestra.claims.results import kept
from palaestra.claims.running import claim_of
from palaestra.cli import app
from palaestra.comparison.figure import drawn
from palaestra.comparison.report import number
from palaestra.data.tokens import KINDS, ROLLED
from palaestra.expression import Entry, catalogue, parse
from palaestra.factories.language import Tiny, task_of, untrained
from palaestra.learner import build
from palaestra.loops.filled import DATASET
from palaestra.loops.rounds import collects, unfitting
from palaestra.networks.language import LanguageSpec, language_spec

REFERENCE = Path(__file__).parent / "reference"
WORLDS = {"continuous": "Pendulum-v1", "discrete": "CartPole-v1", "texts": ""}
STEPS = '(scores="palaestra.envs.text.chain:step_scores")'
ARGUMENTS = {  # of what has no default
    **dict.fromkeys(("prm-clip-delta", "prm-clip", "prm-delta", "prm-sum"), STEPS),
    "salsa": '(models=("first", "second"))',
}
PROMPTS, FILE = "--prompts prompts.jsonl --reward exact_match --rounds 100", "--dataset texts.jsonl --steps 1000"
OFFLINE = (
    "bc", "gaussian-bc", "percentile-bc", "td3-bc", "iql", "iql-discrete", "xql", "cql", "cal-ql", "cql-discrete",
    "decision-transformer", "return-conditioned",
)  # fmt: skip
HEADINGS = {"Papers": "Papers", "Paper": "Papers", "Traps": "Traps", "Differs from the paper": "Differs from the paper"}
SETTING = re.compile(r"(\w+(?:, \w+)*): (.+)")
ELSEWHERE = re.compile(r" Arguments as (?:there|`[\w-]+`)(?:\.|, and)$")  # the table of settings has them all


@dataclass
class Doc:
    """A docstring taken apart: its first line, prose, equations, settings and what stands under `HEADINGS`."""

    title: str = ""
    prose: list[str] = field(default_factory=list)
    equations: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    sections: dict[str, str] = field(default_factory=dict)


def taken_apart(text: str, settings: bool) -> Doc:
    """A docstring's parts. Its indented blocks are `settings` (of a function) or else equations (of a module)."""
    first, *paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text))
    title, _, rest = first.partition("\n")
    doc = Doc(ELSEWHERE.sub("", title))
    for paragraph in [rest, *paragraphs] if rest else paragraphs:
        paragraph = paragraph.removeprefix("Args:\n")
        heading, _, body = paragraph.partition(":")
        if paragraph.startswith("    "):
            if settings:
                doc.settings |= meanings(paragraph)
            else:
                doc.equations.append(textwrap.dedent(paragraph))
        elif heading in HEADINGS:
            text = " ".join(body.split())
            doc.sections[HEADINGS[heading]] = text[:1].upper() + text[1:]
        else:
            doc.prose.append(" ".join(paragraph.split()))
    return doc


def meanings(block: str) -> dict[str, str]:
    """`name: text` and `name, name: text`, with indented continuation lines, as {name: text}."""
    found: dict[str, str] = {}
    lines: list[str] = []
    for line in textwrap.dedent(block).splitlines():
        if line.startswith(" ") and lines:
            lines[-1] += " " + line.strip()
        else:
            lines.append(line.strip())
    for line in lines:
        if match := SETTING.fullmatch(line):
            found |= dict.fromkeys(match[1].split(", "), match[2])
    return found


def described(entry: Entry) -> tuple[Doc, Doc]:
    """The docstrings of an entry's function and module; settings that the function leaves out are its neighbours'."""
    function = inspect.unwrap(entry.load())
    module = inspect.getmodule(function)
    assert module is not None
    doc = taken_apart(function.__doc__ or "", settings=True)
    for other in vars(module).values():
        if inspect.isfunction(other) and inspect.unwrap(other).__module__ == module.__name__:
            doc.settings = {**taken_apart(other.__doc__ or "", settings=True).settings, **doc.settings}
    return doc, taken_apart(module.__doc__ or "", settings=False)


@cache
def tiny() -> LanguageSpec:
    """Of a language model that has learnt nothing."""
    shape = Tiny("add:add", hidden=8, layers=1, heads=1)
    return language_spec(untrained(task_of(shape), shape))


def of_texts(algorithm: Algorithm) -> bool:
    """Whether it learns from texts."""
    return any(buffer.layout in (*ROLLED, *KINDS) for buffer in algorithm.buffers.values())


def actions(algorithm: Algorithm) -> str:
    """The kind of action that a base can be built for."""
    if of_texts(algorithm):
        if problem := unfitting(algorithm):
            raise Unfit(problem)
        algorithm.check()
        build(algorithm, tiny(), seed=0)
        return "texts"
    for kind, space in {"continuous": Space((1,)), "discrete": Space((), choices=(2,))}.items():
        try:
            build(algorithm, Spec(Space((3,)), space), seed=0)
        except Unfit:
            continue
        return kind
    raise ValueError(f"{algorithm} can be built for neither a continuous nor a discrete action")


def written(slug: str) -> str:
    """A method as it is written, with arguments that have no default."""
    return slug + ARGUMENTS.get(slug, "")


def fits(method: Entry) -> list[str]:
    """The bases that a method can be put on."""
    found = []
    for base in ours("algorithms"):
        try:
            actions(parse(f"{base}+{written(method.slug)}"))
        except (ValueError, TypeError, KeyError):
            continue
        found.append(base)
    return found


def ours(group: str) -> dict[str, Entry]:
    """The entries of the library itself: what else is installed here has its own documentation."""
    return {slug: entry for slug, entry in catalogue(group).items() if entry.package == "palaestra"}


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def setting_rows(entry: Entry, doc: Doc) -> list[str]:
    rows = []
    for name, parameter in inspect.signature(entry.load()).parameters.items():
        if parameter.annotation in ("Algorithm", Algorithm):
            continue
        default = "required" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
        rows.append(f"| `{name}` | {default} | {cell(doc.settings.get(name, ''))} |")
    return rows


def shown(expression: str) -> str:
    """What `palaestra show` prints."""
    result = CliRunner().invoke(app, ["show", expression], catch_exceptions=False)
    return "\n".join(line.rstrip() for line in result.output.splitlines())


def page(entry: Entry, bases: list[str]) -> str:
    """A base's page, or, with the `bases` that it fits, a method's."""
    doc, module = described(entry)
    expression = f"{bases[0]}+{written(entry.slug)}" if bases else entry.slug
    value = parse(expression)
    lines = [f"# {entry.slug}", doc.title, *doc.prose]
    if bases:
        parts = ", ".join(f"`{part}`" for part in changed_parts(parse(bases[0]), value))
        lines += [f"Changes {parts}. Fits {', '.join(f'[`{base}`]({base}.md)' for base in bases)}."]
    lines += ["## Equations", f"{module.title}", *(f"```text\n{block}\n```" for block in module.equations)]
    lines += module.prose
    if rows := setting_rows(entry, doc):
        lines += ["## Settings", "\n".join(["| Setting | Default | Meaning |", "| --- | --- | --- |", *rows])]
    for heading in ("Traps", "Differs from the paper", "Papers"):
        texts = [text for part in (module, doc) if (text := part.sections.get(heading))]
        if texts:
            lines += [f"## {heading}", *texts]
    if entry.slug in CLAIMS:
        lines += verdict(claim_of(entry.slug))
    lines += ["## Parts", f"```console\n$ palaestra show {expression}\n{shown(expression)}\n```"]
    kind = actions(value)
    env, steps = WORLDS[kind], max(20_000, 2 * value.schedule.start)  # half of them random at most
    quoted = f'"{expression}"' if "(" in expression else expression
    ground = f"--env {env} --steps {steps}"
    if kind == "texts":
        ground = "--model MODEL " + (PROMPTS if collects(value) else FILE)
    commands = [f"palaestra train {quoted} {ground}"]
    if DATASET in value.buffers or expression.partition("+")[0] in OFFLINE:
        commands = [f"palaestra dataset make {env} --quality medium --steps 20000 --out log.hdf5"]
        ground = (
            f"--dataset log.hdf5 --steps {steps}" if DATASET not in value.buffers else f"{ground} --dataset log.hdf5"
        )
        commands += [f"palaestra train {quoted} {ground}"]
    lines += ["## Run it", "```console\n" + "\n".join(f"$ {command}" for command in commands) + "\n```"]
    source = entry.reference.partition(":")[0].replace(".", "/") + ".py"
    lines += [f"Source: `{source}`."]
    return "\n\n".join(lines) + "\n"


def verdict(claim: Claim) -> list[str]:
    """What came of a method's claim, with its picture."""
    lines = ["## Does it hold?", f"The claim: {claim.says}"]
    command = f"```console\n$ palaestra claim {claim.slug} --scale cpu\n```"
    result = kept(claim)
    if result is None:
        return [*lines, "It has not been run yet.", command]
    sides = [result["measured"][side] for side in ("baseline", "treatment")]
    seeds = " and ".join(str(side["seeds"]) for side in sides)
    told, minutes = " ".join(result["sentences"]), f"{result['seconds'] / 60:.0f} minutes"
    lines += [
        f"**{result['verdict'].capitalize()}** here, on {result['date']} ({result['scale']} scale): {told}",
        f"Interquartile means {' and '.join(_measured(side) for side in sides)}, of {seeds} seeds, in "
        f"{result['plan']['env']}, {result['plan']['steps']:,} steps each; at most 5 % of such comparisons name a "
        f"difference where there is none. It took {minutes} on {result['provenance']['cores']} cores. "
        f"{staleness(result)}",
    ]
    (REFERENCE / f"{claim.slug}.svg").write_bytes(drawn(result, "svg"))
    lines += [f"![{told}]({claim.slug}.svg)"]
    lines += [f"Differs from the paper's experiment: {claim.differs}"] if claim.differs else []
    lines += [f"What was tried: {claim.tried}"] if claim.tried else []
    return [*lines, command]


def _measured(side: dict[str, Any]) -> str:
    low, high = side["interval"]
    return f"{number(side['iqm'])} ({number(low)} to {number(high)})"


def staleness(result: dict[str, Any]) -> str:
    if result["stale"]:
        return f"**Stale**: {', '.join(f'`{name}`' for name in result['changed'])} changed since."
    if result["kernel_changed"]:
        return "Its own files are those that were run; something that all methods stand on has changed since."
    return "The code is the one that was run."


def of_claim(slug: str) -> Doc:
    """The docstring of the file that a claim is in."""
    return taken_apart(import_module(CLAIMS[slug]).__doc__ or "", settings=False)


def source_of(doc: Doc) -> str:
    """The first paper that a docstring names, to its year."""
    source = doc.sections.get("Papers", "").partition(";")[0].partition("(20")
    return "".join(source[:2]) + source[2][:3]


def claim_page(slug: str) -> str:
    """The page of a claim that is about data or measurement, and changes no algorithm."""
    doc = of_claim(slug)
    lines = [f"# {slug}", doc.title, *doc.prose, doc.sections.get("Papers", ""), *verdict(claim_of(slug))]
    return "\n\n".join([*filter(None, lines), f"Source: `{CLAIMS[slug].replace('.', '/')}.py`."]) + "\n"


def papers(methods: dict[str, Any]) -> str:
    """The table of all papers whose claim is listed."""
    lines = [
        "# Papers",
        "Every paper's claim as an experiment, and what came of it here: `palaestra claim SLUG` runs one.",
    ]
    rows = []
    for slug in CLAIMS:
        claim, result = claim_of(slug), kept(claim_of(slug)) or {}
        parts, paper = "", source_of(of_claim(slug))
        if slug in methods:
            entry, bases = methods[slug]
            parts = ", ".join(changed_parts(parse(bases[0]), parse(f"{bases[0]}+{written(slug)}")))
            paper = source_of(described(entry)[1])
        took = f"{result['seconds'] / 60:.0f} min" if result else ""
        told = f"{result['verdict']} ({result['scale']})" if result else "not run yet"
        fresh = (
            ("stale" if result["stale"] else "kernel changed" if result["kernel_changed"] else "current")
            if result
            else ""
        )
        rows.append(
            f"| [`{slug}`]({slug}.md) | {cell(paper)} | {parts} | {cell(claim.says)} "
            f"| {told} | {result.get('date', '')} | {took} | {fresh} |"
        )
    table = ["| Method | Paper | Changes | Claim | Verdict | Run on | Took | Code |", "| --- " * 8 + "|", *rows]
    return "\n\n".join([*lines, "\n".join(table)]) + "\n"


def index(algorithms: dict[str, Any], methods: dict[str, Any]) -> str:
    """The tables of what is listed."""
    lines = ["# Reference", "Generated from the code: `make docs`.", "## Bases"]
    rows = [
        f"| [`{e.slug}`]({e.slug}.md) | {cell(described(e)[0].title)} | {kind} |" for e, kind in algorithms.values()
    ]
    lines += ["\n".join(["| Base | | Actions |", "| --- | --- | --- |", *rows])]
    rows = [
        f"| [`{e.slug}`]({e.slug}.md) | {cell(described(e)[0].title)} | {', '.join(f'`{base}`' for base in bases)} |"
        for e, bases in methods.values()
    ]
    lines += ["## Methods and variants", "\n".join(["| Name | | Fits |", "| --- | --- | --- |", *rows])]
    return "\n\n".join(lines) + "\n"


def main() -> None:
    shutil.rmtree(REFERENCE, ignore_errors=True)
    REFERENCE.mkdir()
    algorithms = {slug: (entry, actions(parse(slug))) for slug, entry in ours("algorithms").items()}
    methods = {slug: (entry, fits(entry)) for slug, entry in ours("methods").items()}
    pages = {slug: page(entry, []) for slug, (entry, _) in algorithms.items()}
    pages |= {slug: page(entry, bases) for slug, (entry, bases) in methods.items()}
    pages |= {slug: claim_page(slug) for slug in CLAIMS if slug not in pages}
    for slug, text in {"index": index(algorithms, methods), "papers": papers(methods), **pages}.items():
        (REFERENCE / f"{slug}.md").write_text(text, encoding="utf-8")
    print(f"wrote {len(pages) + 2} pages into {REFERENCE}")


if __name__ == "__main__":
    main()
