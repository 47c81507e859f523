"""Labels in one spelling, and whether two labels say the same.

    normalise(" Sports. ", "text", labels=["sports", "food"])   -> "sports"
    normalise("(b) Bank", "choice", choices=["river", "bank"])  -> "bank"
    normalise("$1,200.50", "number")                            -> "1200.5"
    normalise("x = ((84.0/2))", "equation")                     -> "84 / 2"

A label that cannot be read as its kind (a topic outside the list, "either (a) or (b)", "some - 8") is handed back as it was said, in
single spaces: that it is unusable is for a quality filter to say, with the evidence. ``value`` and the lists tell the two apart.

Limits: a decimal comma, an exponent ("1e3"), a percent sign and units are not read as parts of numbers; equations know + - * / and
parentheses over decimal numbers, and no names, powers or functions.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from pipeline import text

LabelType = Literal["text", "choice", "number", "equation"]

LONGEST_EQUATION = 1000  # characters
DEEPEST_EQUATION = 50  # parentheses and signs inside each other

_QUOTES = {'"': '"', "'": "'", "`": "`", "*": "*", "_": "_", "“": "”", "‘": "’"}
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_TOKEN = re.compile(rf"\s*({_NUMBER}|[-+*/()])", re.ASCII)
_WHOLE_NUMBER = re.compile(rf"(?:[$€£¥₹]\s*)?([-+]?)\s*[$€£¥₹]?\s*({_NUMBER})\.?", re.ASCII)
_CHOICE = re.compile(r"\(?(?P<alone>[a-z])[).:]?|(?:\([a-z]\)|[a-z][).:]\s)\s*(?P<rest>.+)", re.ASCII)
_NAME_BEFORE = re.compile(r"^(\(?)\s*(?:[A-Za-z]\w*\s*)?=\s*", re.ASCII)
_RESULT_BEHIND = re.compile(rf"(?<=[^\s=])\s*=\s*[-+]?(?:{_NUMBER})(\)?)$", re.ASCII)
_SIGNS = str.maketrans({"×": "*", "∙": "*", "·": "*", "÷": "/", "∕": "/", "−": "-", "–": "-", "[": "(", "]": ")"})


def normalise(
    raw: str, kind: LabelType, labels: Sequence[str] | None = None, choices: Sequence[str] | None = None
) -> str | None:
    """The label that ``raw`` says, in its one spelling; None where ``raw`` says nothing at all.

    text: the one of ``labels`` that equals it, letter case, spaces and, if need be, punctuation aside. choice: the one of ``choices`` (or
    ``labels``) that is named by its text, its letter or both; where letter and text disagree the text counts if it is a choice.
    number: decimal digits without grouping, currency and needless zeros. equation: the expression alone, in single spaces, without a
    name before it ("x = ..") and a result behind it (".. = 42").
    """
    said = _unquoted(" ".join(raw.split()))
    if kind == "choice":
        options = choices or labels or ()
        return _member(said, options) or _lettered(said, options) or _plain(said)
    if kind == "number":
        return _decimal(said) or _plain(said)
    if kind == "equation":
        return _spelled(said) or _plain(said)
    return _member(said, labels or ()) or _plain(said)


def read_label(
    text: str, kind: LabelType, labels: Sequence[str] | None = None, choices: Sequence[str] | None = None
) -> str | None:
    """The label that ``text`` says, or None where it says none that could be right: outside the set, or no number or equation."""
    said = normalise(text, kind, labels, choices)
    if said is None or (kind in ("number", "equation") and value(said, kind) is None):
        return None
    options = choices or closed_set(kind, labels)
    return said if not options or said in options else None


def closed_set(kind: LabelType, labels: Sequence[str] | None) -> list[str]:
    """The labels that macro-F1 and confusion matrix are over: the task's own for texts and choices, none where answers are open."""
    return list(dict.fromkeys(labels or ())) if kind in ("text", "choice") else []


def same(first: str, second: str, kind: LabelType) -> bool:
    """Whether two labels, normalised or not, say the same: text letter case and spaces aside, numbers and equations by exact value.

    An equation without a value is the same as nothing. There is no tolerance: rounded decimals differ from the fraction they stand for.
    """
    if kind in ("number", "equation"):
        left, right = value(first, kind), value(second, kind)
        return left is not None and left == right
    return key(first, kind) == key(second, kind)


def key(label: str, kind: LabelType) -> str:
    """What a vote counts: labels that say the same have the same key."""
    if kind in ("number", "equation"):
        result = value(label, kind)
        return text.fold(label) if result is None else str(result)
    return text.fold(label).removesuffix(".").strip()


def value(label: str, kind: LabelType = "equation") -> Fraction | None:
    """The exact value of an equation or number; None where it is none, divides by zero, or passes the limits of length and depth."""
    if kind == "number":
        digits = _decimal(label.strip())
        return None if digits is None or len(digits) > LONGEST_EQUATION else Fraction(digits)
    return _evaluated(_tokens(_expression(label)))


def _unquoted(said: str) -> str:
    while len(said) > 2 and _QUOTES.get(said[0]) == said[-1]:
        said = said[1:-1].strip()
    return said


def _plain(said: str) -> str | None:
    """``said`` without its final point, unless that belongs to it as in "U.S."."""
    return (said[:-1].strip() if said.endswith(".") and said.count(".") == 1 else said) or None


def _member(said: str, options: Sequence[str]) -> str | None:
    """The only option that equals ``said`` under the strictest comparison that finds any: "C" is "c" before "c++" comes near."""
    if said in options:
        return said
    folded, normalised = _spellings(tuple(options))
    for look, looks in ((text.fold(said), folded), (text.normalise(said), normalised)):
        if look in looks:
            found = {option for option, other in zip(options, looks, strict=True) if other == look}
            return found.pop() if len(found) == 1 else None
    return None


@lru_cache(maxsize=1024)
def _spellings(options: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How each option looks folded, and how normalised."""
    folded = tuple(map(text.fold, options))
    letters = "".join(folded).replace(" ", "")
    plain = letters.isascii() and letters.isalpha()  # words that normalising leaves as they are
    return folded, folded if plain else tuple(map(text.normalise, options))


def _lettered(said: str, options: Sequence[str]) -> str | None:
    match = _CHOICE.fullmatch(text.fold(said))
    if match is None:
        return None
    if match["rest"]:
        return _member(match["rest"], options)
    index = ord(match["alone"]) - ord("a")
    return options[index] if index < len(options) else None


def _decimal(said: str) -> str | None:
    match = _WHOLE_NUMBER.fullmatch(said.translate(_SIGNS))
    if match is None:
        return None
    digits = _shortest(match[2])
    return f"-{digits}" if match[1] == "-" and digits != "0" else digits


def _shortest(number: str) -> str:
    whole, _, part = number.replace(",", "").partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    return f"{whole}.{part}" if part else whole


def _expression(said: str) -> str:
    """``said`` without a name before the equation, a result behind it, and a final point."""
    shown = " ".join(said.translate(_SIGNS).replace("$", "").split()).rstrip(" .")
    return _RESULT_BEHIND.sub(r"\1", _NAME_BEFORE.sub(r"\1", shown))


def _tokens(expression: str) -> list[str]:
    """Numbers, signs and parentheses; none where anything else stands in the expression or it is too long."""
    if len(expression) > LONGEST_EQUATION:
        return []
    tokens, end = [], 0
    while end < len(expression):
        match = _TOKEN.match(expression, end)
        if match is None:
            return []
        tokens.append(match[1])
        end = match.end()
    return tokens


def _spelled(said: str) -> str | None:
    """An equation with shortest numbers, one space around each sign between two values, and no parentheses around the whole."""
    tokens = _tokens(_expression(said))
    if _evaluated(tokens) is None:
        return None
    tokens = [_shortest(token) if token[-1].isdigit() else token for token in tokens]
    while tokens[0] == "(" and _closing(tokens) == len(tokens) - 1:
        tokens = tokens[1:-1]
    spelled = ""
    for place, token in enumerate(tokens):
        between = token in "+-*/" and place > 0 and (tokens[place - 1] == ")" or tokens[place - 1][-1].isdigit())
        spelled += f" {token} " if between else token
    return spelled


def _closing(tokens: list[str]) -> int:
    depth = 0
    for place, token in enumerate(tokens):
        depth += (token == "(") - (token == ")")
        if depth == 0:
            return place
    return len(tokens)


class _NotAnEquationError(Exception):
    pass


def _evaluated(tokens: list[str]) -> Fraction | None:
    try:
        result, end = _sum(tokens, 0, 0)
    except (_NotAnEquationError, ZeroDivisionError):
        return None
    return result if end == len(tokens) else None


def _sum(tokens: list[str], start: int, depth: int) -> tuple[Fraction, int]:
    """Value of the sum that begins at ``start``, and where it ends."""
    result, end = _product(tokens, start, depth)
    while end < len(tokens) and tokens[end] in "+-":
        operand, after = _product(tokens, end + 1, depth)
        result = result + operand if tokens[end] == "+" else result - operand
        end = after
    return result, end


def _product(tokens: list[str], start: int, depth: int) -> tuple[Fraction, int]:
    result, end = _signed(tokens, start, depth)
    while end < len(tokens) and tokens[end] in "*/":
        operand, after = _signed(tokens, end + 1, depth)
        result = result * operand if tokens[end] == "*" else result / operand
        end = after
    return result, end


def _signed(tokens: list[str], start: int, depth: int) -> tuple[Fraction, int]:
    if start >= len(tokens) or depth > DEEPEST_EQUATION:
        raise _NotAnEquationError
    token = tokens[start]
    if token in "+-":
        result, end = _signed(tokens, start + 1, depth + 1)
        return (-result if token == "-" else result), end
    if token == "(":
        result, end = _sum(tokens, start + 1, depth + 1)
        if end >= len(tokens) or tokens[end] != ")":
            raise _NotAnEquationError
        return result, end + 1
    if not token[-1].isdigit():
        raise _NotAnEquationError
    return Fraction(token.replace(",", "")), start + 1
