"""Rewards that a program decides: 1 where an answer is right and 0 where it is not.

Each reads "answer" of its row, except where it says otherwise. Nothing that a model writes is ever run.
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction

from palaestra.envs.text.task import Reward, Row

WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"  # 1,234 or 1234
# A minus is a sign only where nothing stands before it that could be subtracted from.
NUMBER = re.compile(rf"(?:(?<![\w).])-)?(?:{WHOLE}(?:\.[0-9]+)?|\.[0-9]+)")
LONGEST_EXPRESSION = 256  # characters: the parser's and the numbers' sizes stay small
OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def exact_match(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
    """Whether the answer is the row's, white space at both ends aside."""
    return [float(answer.strip() == _right(row)) for row, answer in zip(rows, answers, strict=True)]


def last_number(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
    """Whether the last number of the answer equals the last one of the row's: 1,234.0 is 1234."""
    pairs = [(_last_number(_right(row)), _last_number(answer)) for row, answer in zip(rows, answers, strict=True)]
    return [float(_equal(*pair)) for pair in pairs]


def final_answer(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
    r"""Whether what the answer comes to is what the row's comes to, as text or as a number.

    That is what stands inside the last \boxed{...}, or else in the line after the last "####". An answer with neither
    is wrong; a row's may be the bare result.
    """
    pairs = [(_final(_right(row)) or _right(row), _final(answer)) for row, answer in zip(rows, answers, strict=True)]
    return [float(said is not None and (said == right or _equal(said, right))) for right, said in pairs]


def countdown(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
    """Whether the answer is an expression of the row's "numbers", each used at most once, equal to its "target".

    An expression has whole numbers, +, -, *, / and brackets, and nothing else; fractions on the way are exact.
    """
    results = []
    for row, answer in zip(rows, answers, strict=True):
        value, used = evaluated(answer)
        results.append(float(value == row["target"] and not Counter(used) - Counter(row["numbers"])))
    return results


def ends_with(suffix: str) -> Reward:
    """Whether the answer ends so, white space at its end aside."""

    def ended(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
        return [float(answer.rstrip().endswith(suffix)) for answer in answers]

    return ended


def evaluated(expression: str) -> tuple[Fraction | None, list[int]]:
    """What an arithmetic expression is worth, and the numbers in it; None where it is no such expression, or 1/0."""
    used: list[int] = []

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used.append(node.value)
            return Fraction(node.value)
        raise ValueError(f"{type(node).__name__} is not arithmetic")

    text = expression.strip()
    if len(text) > LONGEST_EXPRESSION or not re.fullmatch(r"[0-9+\-*/() ]+", text):
        return None, []
    try:
        return value(ast.parse(text, mode="eval").body), used
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):  # the last two: of the parser
        return None, []


def _right(row: Row) -> str:
    return str(row["answer"]).strip()


def _last_number(text: str) -> str:
    found = NUMBER.findall(text)
    return found[-1] if found else ""


def _equal(left: str, right: str) -> bool:
    """Whether both are numbers, and the same one."""
    if not (NUMBER.fullmatch(left) and NUMBER.fullmatch(right)):
        return False
    return Decimal(left.replace(",", "")) == Decimal(right.replace(",", ""))


def _final(text: str) -> str | None:
    if (boxed := _boxed(text)) is not None:
        return boxed
    _, marked, after = text.rpartition("####")
    return after.strip().partition("\n")[0].strip() if marked else None


def _boxed(text: str) -> str | None:
    r"""What stands inside the last \boxed{...} that is closed; braces within it are counted."""
    _, found, after = text.rpartition(r"\boxed{")
    depth = 1
    for place, letter in enumerate(after if found else ""):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return after[:place].strip()
    return None
