r"""Arithmetic that is exact: a calculator for expressions, and numbers read from text."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

__all__ = ["calculate", "read_number", "same_number"]

_TWO: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
#: Larger results are refused: nobody wants to print them, and a power of powers never ends.
_DIGITS = 10_000
_MAY_HOLD = "numbers, + - * / ^ ! ( )"
#: A minus after a letter, a digit or a bracket joins (10-7) and is no sign; what divides a name
#: (pi/2) is no number of its own.
_NUMBER = re.compile(
    r"(?<![A-Za-z)}]/)(?:(?<![\w)}])-)?"
    r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+|[eE][-+]?\d{1,3}(?!\w))?|\.\d+)"
)
#: Algebra: a number beside one of these is not the value of the text.
_SYMBOLS = re.compile(r"[\\^*+=(){}!]|/\s*[^\W\d]|\d[A-Za-z]\b|[-\u2212×÷]\s")
_EXPRESSION = re.compile(r"[\d.+\-*/()! \t]*")


def calculate(expression: str) -> Fraction:
    r"""Evaluate an arithmetic expression, exactly.

    Args:
        expression: Decimal numbers, ``+ - * /``, ``**`` or ``^`` with a whole exponent, ``!`` right
            after a whole number, and parentheses. ``×``, ``÷`` and ``−`` are read as well.

    Returns:
        The value, a fraction without rounding: 1/2004! and 1/2006! are different numbers.

    Raises:
        ValueError: If it is no expression of this kind, divides by 0, or has more digits than a
            calculator should print. Nothing else of Python is evaluated.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> calculate("(1 + 2) / 4")
        Fraction(3, 4)
        >>> calculate("1/2004!") == calculate("1/2006!")
        False
    """
    text = expression.strip()
    for sign, plain in (("×", "*"), ("÷", "/"), ("\u2212", "-"), ("^", "**")):
        text = text.replace(sign, plain)
    if len(text) > 1000:
        raise ValueError("an expression of more than 1,000 characters is not evaluated")
    if not _EXPRESSION.fullmatch(text):
        raise ValueError(f"{expression!r} is no arithmetic expression: it may hold {_MAY_HOLD}")
    text = re.sub(r"\b(\d+)!", r"_factorial(\1)", text)
    try:
        tree = ast.parse(text, mode="eval")
        return _value(tree.body, text)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{expression!r} is no arithmetic expression") from error
    except ZeroDivisionError as error:
        raise ValueError(f"{expression!r} divides by zero") from error


def _value(node: ast.expr, text: str) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(ast.get_source_segment(text, node) or "")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = _value(node.operand, text)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, text), _value(node.right, text)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _TWO:
            return _TWO[type(node.op)](left, right)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "_factorial":
        return _factorial(_value(node.args[0], text))
    raise ValueError(f"{text!r} is no arithmetic expression: it may hold {_MAY_HOLD}")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ValueError("only powers with a whole exponent are exact")
    size = max(abs(base.numerator), base.denominator).bit_length() * abs(exponent.numerator)
    if size > 4 * _DIGITS:
        raise ValueError("the result has too many digits")
    return base**exponent.numerator


def _factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or not 0 <= value <= 3000:
        raise ValueError("a factorial is taken of whole numbers from 0 to 3000")
    made = 1
    for factor in range(2, int(value) + 1):
        made *= factor
    return Fraction(made)


def read_number(text: str) -> Fraction | None:
    r"""Find the last number of a text: what an answer ends with.

    Args:
        text: Such as ``"so she has 1,234.5 left"``; fractions are written with a slash. The minus
            of ``10-7`` is no sign: the last number there is 7.

    Returns:
        The number, exactly; ``None`` if there is none. No answer is not an answer that may win a
        vote or equal another.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> read_number("3 and 4 make 7 apples")
        Fraction(7, 1)
    """
    for found in reversed(_NUMBER.findall(text.replace("\u2212", "-"))):
        try:
            return Fraction(found.replace(",", ""))
        except (ValueError, ZeroDivisionError):
            continue
    return None


def same_number(answer: str, gold: str) -> bool:
    """Say whether two texts give the same value: the verifier for answers that are numbers.

    Args:
        answer: An expression, or a text that ends with a number.
        gold: The right one: an expression, or a text with one number.

    Returns:
        Whether both are the same rational number. An answer without a number is wrong.

    Raises:
        ValueError: If gold has no number, several, or symbols as in ``1 - 1/e`` and ``2x``: such a
            question cannot be verified here, and should be left out; paid the same whatever is
            answered, it teaches nothing.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> same_number("0.5", "1/2"), same_number("1-1/3", "1+1/3")
        (True, False)
    """
    try:
        right = calculate(gold)
    except ValueError:
        number = read_number(gold)
        if number is None or _SYMBOLS.search(gold) or len(_NUMBER.findall(gold)) > 1:
            raise ValueError(
                f"gold {gold!r} has no number of its own: leave the question out"
            ) from None
        right = number
    try:
        return calculate(answer) == right
    except ValueError:
        return read_number(answer) == right
