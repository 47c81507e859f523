r"""Filters of rationales that contradict their label, or arithmetic.

    "So there are 7 * 36 = 225 pencils."   ->  wrong_step: "7 * 36 = 225, but it is 252"
    "So the answer is (b)." for label (a)  ->  other_conclusion: "it concludes 'bank', and the label is 'river'"

What counts as a step of arithmetic: an expression with at least one of + - * / x × ÷ (or plus, minus, times, multiplied by, divided by)
over decimal numbers, "=", and a number or another expression. Numbers may have currency signs, "%", grouping commas and words for what
is counted ("5 apples + 3 apples = 8 apples"). Both sides are recomputed exactly, with the usual precedence.

A step is right where the sides differ by less than one in the last decimal place written (rounded, cut off, or rounded up), and, in a
chain "2 + 3 = 5 * 4 = 20", where a side continues with the result of the one before.

Limits: nothing is said about what is not read with certainty: a letter that may be an unknown, powers and roots, LaTeX, mixed numbers,
sums of percentages and numbers, units that convert into each other ("1 hour + 30 minutes = 90 minutes"), numbers of more than 20
characters, divisions by zero.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Final

from pipeline import labels as label_forms
from pipeline.binding import From
from pipeline.files import plain
from pipeline.filters.reading import quoted
from pipeline.labels import LabelType
from pipeline.records import Example

LONGEST_NUMBER: Final = 20  # characters
LONGEST_SIDE: Final = 40  # tokens
MOST_CONCLUSIONS: Final = 20  # that are looked at, from the end
MOST_UNITS: Final = 3  # words between a number and the next sign

_TOKEN = re.compile(
    r"(?P<number>[0-9]+(?:[.,][0-9]+)*|\.[0-9]+)"
    r"|(?P<bad>(?:(?<=[0-9)])|(?<=[0-9)] ))\*\*(?=\s*[0-9(])|:(?=[0-9])|//|[\\^_{}√~]|!(?=\s*[-+*/=])|[<>=!≤≥≠≈]=|=[=>]|[-=]>)"
    r"|(?P<neutral>\*\*+|--+)"
    r"|(?P<equals>=)"
    r"|(?P<sign>[-+*/×∙·÷∕−–]|(?<=[0-9])(?<![^0-9.]0)(?<!^0)[xX](?=[0-9]))"  # "3x4", but not "0x4"
    r"|(?P<open>[(\[])"
    r"|(?P<close>[)\]])"
    r"|(?P<percent>%)"
    r"|(?P<currency>[$€£¥₹])"
    r"|(?P<word>[^\W\d_]{2,}+(?:[-'’][^\W\d_]+)++(?!\w)|[^\W0-9_]\w*)"  # "push-ups" and "Dean's" are one word, "a-b" is not
    r"|(?P<space>\s+)"
    r"|(?P<other>.)",
    re.DOTALL,
)
_JOINED = re.compile("[-'’]")
_SPOKEN: Final = {"plus": "+", "minus": "-", "times": "*", "multiplied": "*", "divided": "/"}
_SIGNS = str.maketrans("×∙·÷∕−–xX", "***//--**")

_NOT_UNITS: Final = frozenset(
    "and or but so then is are was were of the a an than in by per over squared cubed thousand million billion trillion hundred dozen "
    "half third thirds quarter quarters percent remainder mod modulo".split()
)
_ALTERS: Final = frozenset(
    "half twice double triple thrice third quarter square squared root sqrt log percent dozen hundred thousand million billion than "
    "average mean by over".split()
)
_DIMENSIONS: Final = {
    unit: dimension
    for dimension, units in {
        "time": "second sec minute min hour hr day week fortnight month year decade century",
        "money": "$ € £ ¥ ₹ cent dollar buck euro pound penny pennie nickel dime quarter rupee",
        "length": "mm cm km millimeter centimeter meter metre kilometer kilometre inch inche foot feet yard mile ft yd",
        "weight": "mg kg milligram gram kilogram lb ounce oz ton tonne",
        "volume": "ml milliliter liter litre gallon quart pint cup tablespoon teaspoon",
    }.items()
    for unit in units.split()
}
"""Units of the same dimension convert into each other, so that steps over several of them are no plain arithmetic."""


def other_conclusion(
    example: Example,
    *,
    labels: Annotated[list[str] | None, From("task.labels")] = None,
    label_type: Annotated[LabelType, From("stages.parse.label_type")] = "text",
) -> str | None:
    """The rationale's last conclusion ("so the answer is X", "the answer must be (b)") is another label than the example's.

    Of a row with choices of its own "only X .." is a conclusion as well, where the sentence names one choice alone.

    Where labels or choices are given X must be one of them, letter or text; a number or an equation must have a value. Other
    conclusions, such as "the answer is a place where ..", are none.
    """
    text = example.rationale
    if not text or example.label is None:
        return None
    last = concluded(text, example.choices or labels or (), label_type)
    if last is None and example.choices:
        last = _only(text.lower(), example.choices, example.label)
    if last is None or label_forms.same(last, example.label, label_type):
        return None
    if label_type in ("number", "equation") and label_forms.value(example.label, label_type) in (
        None,
        label_forms.value(last),
    ):
        return None
    return f"it concludes {quoted(last)}, and the label is {quoted(example.label)}"


def concluded(text: str, options: Sequence[str], label_type: LabelType) -> str | None:
    """The label of the last conclusion ("so the answer is X") that is one: one of ``options``, or a number or equation with a value."""
    found = _conclusions(text.lower())
    return next((label for said in found if (label := _concluded(said, options, label_type)) is not None), None)


_CONCLUDED: Final = ("answer", "label", "topic", "category", "choice", "option")
_SAID = re.compile(r"(?:(?: is| must be| should be| would be)\b:?|:)\s*([^\n.;!?]{1,100}(?:\.[0-9][^\n.;!?]{0,40})?)")


def _conclusions(text: str) -> list[str]:
    """What stands behind "the answer is" and its like: the last of them, the very last first."""
    found: list[tuple[int, str]] = []
    for name in _CONCLUDED:
        place = text.find(name)
        while place >= 0:
            if match := _SAID.match(text, place + len(name)):
                found.append((place, match[1]))
            place = text.find(name, place + len(name))
    return [said for _, said in sorted(found, reverse=True)[:MOST_CONCLUSIONS]]


_LETTER = re.compile(r"\W*[A-Za-z](?:[).:]|\W*$)")


def _concluded(said: str, options: Sequence[str], label_type: LabelType) -> str | None:
    """The label that ``said`` is, alone or before a comma, "because", "since", "as" or "which"."""
    if label_type not in ("number", "equation") and not _LETTER.match(said):
        begun = said.lstrip("([{<\"'*`“‘ ")  # most of what is said is told from a label by its first letters
        if not begun.startswith(tuple([option[:3].casefold() for option in options if option])):
            return None
    for text in (said, _REASON.split(said, maxsplit=1)[0]):
        label = label_forms.normalise(text.strip().strip("*\"'"), label_type, options, options)
        if label is None:
            continue
        if label_type in ("number", "equation"):
            if label_forms.value(label, label_type) is not None:
                return label
        elif label in options:
            return label
    return None


def _only(text: str, choices: Sequence[str], label: str) -> str | None:
    """The choice that the last "only" (not "not only") speaks of, where it names no other one and no word of the label."""
    place = text.rfind(" only ")
    if place < 0 or text[max(0, place - 4) : place].strip() == "not":
        return None
    said = _END.split(text[place + 6 :], maxsplit=1)[0]
    if label.lower() in said:
        return None
    its = [word[:3] for word in label.lower().split() if len(word) > 2] or [label.lower()]
    if any(f" {begin}" in f" {said}" for begin in its):  # be it in another form: "losing money" for "lose money"
        return None
    begun = _ARTICLE.sub("", said)
    named = [choice for choice in choices if choice and choice.lower() in said]
    if len(named) != 1 or not begun.startswith(first := named[0].lower()):
        return None
    return None if _PART.match(begun, len(first)) else named[0]


_END = re.compile(r"[\n.;!?]")
_ARTICLE = re.compile(r"^ *(?:an? |the )?(?:\([a-z]\) )?")
_PART = re.compile(r"\w|[-'’]|,? (?:and|or)\b|,")  # "penguin" does not name "pen", "car and bus" not "car" alone
_REASON = re.compile(r",|\b(?:because|since|as|which)\b")


def wrong_step(example: Example) -> str | None:
    """A written step of arithmetic in the rationale is wrong; each is recomputed exactly, and rounding is tolerated (see the module)."""
    text = example.rationale
    if not text or "=" not in text:
        return None
    for piece in _pieces(text):
        if not _plainly_right(piece):
            for left, right in _steps_of(piece):
                if (found := _mistake(left, right)) is not None:
                    return found
    return None


def last_value(
    example: Example, *, label_type: Annotated[LabelType, From("stages.parse.label_type")] = "text"
) -> str | None:
    """The last written step of arithmetic has another result than the label of a number or equation task, within the decimals written.

    A rationale that computes something else last ("so 3 are left of the 8") is dropped as well, so this is for tasks whose prompt asks
    for the result at the end. Signs do not count: what was lost is often written without its minus.
    """
    if label_type not in ("number", "equation") or example.label is None or "=" not in (example.rationale or ""):
        return None
    value = label_forms.value(example.label, label_type)
    last = None
    for _, last in _steps(example.rationale or ""):  # noqa: B007 - the last one is wanted
        pass
    result = None if last is None else last.value(shares=False, dash=False)
    if value is None or last is None or result is None or abs(abs(value) - abs(result)) < _unit(last.numbers[0]):
        return None
    return f"its last step comes to {_decimal(result)}, and the label {quoted(example.label)} to {_decimal(value)}"


@dataclass
class _Side:
    """One side of "=", as far as it has been read."""

    tokens: list[str] = field(default_factory=list)  # numbers (with their "%"), signs and parentheses
    words: list[str] = field(default_factory=list)  # what may be units
    counted: int = 0  # words since the last number
    depth: int = 0
    listed: bool = False  # its first minus may be the dash of a list
    bad: bool = False  # something in it cannot be read with certainty

    @property
    def complete(self) -> bool:
        """Whether it ends with a value, so that a sign can follow."""
        return bool(self.tokens) and self.tokens[-1][-1] in "0123456789%)"

    @property
    def numbers(self) -> list[str]:
        return [token for token in self.tokens if token[0] in ".0123456789"]

    @property
    def signs(self) -> set[str]:
        return set(self.tokens) & {"+", "-", "*", "/"}

    @property
    def computes(self) -> bool:
        """Whether it has a sign that is not its number's own minus."""
        return not {"+", "-", "*", "/"}.isdisjoint(self.tokens[1:])

    def closed(self) -> "_Side | None":
        """The side, where it can be recomputed, without a parenthesis opened before the step and a sign that belongs to the text."""
        opened = next((place for place, token in enumerate(self.tokens) if token != "("), 0)
        before = min(opened, self.depth)
        del self.tokens[:before]
        self.depth -= before
        if self.tokens and self.tokens[-1] in "*-":
            del self.tokens[-1]
        long = len(self.tokens) > LONGEST_SIDE or any(len(token) > LONGEST_NUMBER for token in self.tokens)
        return None if self.bad or self.depth or long or not self.complete else self

    def value(self, *, shares: bool, dash: bool) -> Fraction | None:
        """Its exact value, 20% being 1/5 (``shares``) or 20, a dash of a list being a minus or (``dash``) not."""
        percent = "/100)" if shares else ")"
        tokens = [f"({token[:-1]}{percent}" if token[-1] == "%" else token for token in self.tokens[dash:]]
        return label_forms.value("".join(tokens))

    def shown(self) -> str:
        return " ".join(self.tokens).replace("( ", "(").replace(" )", ")")


_PLAIN = re.compile(
    r"(?:^|[a-z]{3} |[.,;:] |\b(?:[Ss]o|[Hh]e|is|be) )"
    r"([0-9]{1,9}) ([-+*/]) ([0-9]{1,9})(?: \+ ([0-9]{1,9}))? = (-?[0-9]{1,9})(?= [a-z]{2}|[.,;:]? [A-Z]|\.?$)"
)


def _plainly_right(text: str) -> bool:
    """Whether all steps are of two or three whole numbers with words around them, and right: most are, and this is told in no time."""
    found = _PLAIN.findall(text.replace("$", ""))
    if len(found) != text.count("=") or any(map(text.__contains__, _SPOKEN)):
        return False
    for first, sign, second, third, result in found:
        left, right, given = int(first), int(second), int(result)
        if third:
            if sign != "+" or left + right + int(third) != given:
                return False
        elif sign == "/":
            if not right or abs(left - given * right) >= right:
                return False
        elif (left + right if sign == "+" else left - right if sign == "-" else left * right) != given:
            return False
    return True


def _steps(text: str) -> Iterator[tuple[_Side, _Side]]:
    """The two sides of each "=" between expressions that can be read."""
    for piece in _pieces(text):
        yield from _steps_of(piece)


def _pieces(text: str) -> list[str]:
    """The sentences and lines with a "=": a step is in one of them."""
    return [piece for piece in text.replace("\n", ". ").split(". ") if "=" in piece]


def _steps_of(piece: str) -> Iterator[tuple[_Side, _Side]]:
    tokens = [(match.lastgroup or "", match[0]) for match in _TOKEN.finditer(piece)]
    tokens.append(("other", "."))
    left: _Side | None = None
    side = _Side()
    before, spaced = ("", ""), True  # the token before this one, and whether white space stands between
    recent: tuple[str, ...] = ()  # the last two words
    for place, (kind, said) in enumerate(tokens):
        if kind == "space":
            spaced = True
            continue
        word = said.lower() if kind == "word" else ""
        parts = _JOINED.split(word) if word else []
        sign = _sign(kind, word, said, tokens, place, side, before)
        ends = kind in ("equals", "neutral", "other") or (
            side.complete
            and not sign
            and (
                kind in ("number", "open")
                or (kind == "close" and not side.depth)
                or (kind == "word" and (not _NOT_UNITS.isdisjoint(parts) or word == "a" or side.counted >= MOST_UNITS))
            )
        )
        if ends:
            unsure = kind in ("number", "open") and side.complete and not side.counted  # "1 1/2", "5 (3 + 2)"
            closed = side.closed()
            if left is not None and closed is not None:
                yield left, closed
            left = closed if kind == "equals" else None
            side = _Side(bad=unsure or (kind == "other" and said.isalnum()))
        if kind in ("number", "open"):
            side.bad |= not side.tokens and not _ALTERS.isdisjoint(recent)
            side.bad |= kind == "open" and before[0] == "word" and not spaced and not sign
            side.tokens.append("(" if kind == "open" else said)
            side.depth += kind == "open"
            side.counted = 0
        elif sign:
            _add_sign(side, sign, before, followed_by_space=tokens[place + 1][0] == "space")
        elif kind == "percent":
            side.bad |= before[0] != "number"
            if side.complete:
                side.tokens[-1] += "%"
        elif kind == "close" and side.depth:
            side.bad |= not side.complete
            side.tokens.append(")")
            side.depth -= 1
        elif kind == "currency":
            side.words.append(said)
        elif kind == "bad":
            side.bad = True
        elif kind == "word" and not ends:
            side.bad |= bool(side.tokens) and not side.complete and word != "by"
            side.bad |= not all(map(str.isalpha, parts)) or (len(word) == 1 and word not in "ai")
            side.bad |= not spaced and before[0] == "number" and word in ("st", "nd", "rd", "th")
            side.counted += side.complete
            side.words += parts if side.complete else []
        recent = (*recent, *parts)[-2:] if word else () if kind in ("other", "equals") else recent
        before, spaced = (kind, word or said), False


def _sign(
    kind: str, word: str, said: str, tokens: list[tuple[str, str]], place: int, side: _Side, before: tuple[str, str]
) -> str:
    """The sign that a token is, be it a word; "" where it is none."""
    if kind == "sign":
        return said.translate(_SIGNS)
    if kind != "word" or not side.complete:
        return ""
    if word == "x":
        after = next((name for name, _ in tokens[place + 1 : place + 3] if name != "space"), "")
        return "*" if after in ("number", "currency", "open") else ""
    if word == "of":  # a share of something
        return "*" if before[0] == "percent" or side.tokens[-2:-1] == ["/"] else ""
    return _SPOKEN.get(word, "")


def _add_sign(side: _Side, sign: str, before: tuple[str, str], *, followed_by_space: bool) -> None:
    if side.complete:
        side.tokens.append(sign)
        side.counted = 0
        return
    first = not side.tokens
    attached = before[0] == "word" and len(before[1]) > 1 and not followed_by_space  # "he had -4 + 5 = 1"
    known = attached or before[0] in ("currency", "", "equals", "open", "neutral", "sign") or before[1] in ",;:'\""
    side.bad |= not known or (sign != "-" and not (first and sign == "*" and before[0] == ""))
    if sign == "-":
        side.listed |= first and followed_by_space
        side.tokens.append(sign)


def _mistake(left: _Side, right: _Side) -> str | None:
    """What is wrong with a step; None where it is right, or cannot be judged."""
    sides = (left, right)
    if not (left.signs or right.signs) or _mixed_units([*left.words, *right.words]):
        return None
    percents = any(token[-1] == "%" for one in sides for token in one.tokens)
    for one in sides:
        shares = sum(token[-1] == "%" for token in one.numbers)
        if 0 < shares < len(one.numbers) and one.signs & {"+", "-"}:
            return None
    readings = ((True, True), (False, False), (True, False)) if percents else ((True, True),)
    first: Fraction | None = None
    for dash in (False, True) if left.listed else (False,):
        for share_left, share_right in readings:
            here = left.value(shares=share_left, dash=dash)
            there = right.value(shares=share_right, dash=False)
            if here is None or there is None or _agree(here, there, left, right, shares=share_right):
                return None
            first = here if first is None else first
    assert first is not None
    return f"{plain(f'{left.shown()} = {right.shown()}', 120)}, but it is {_decimal(first)}"


def _agree(here: Fraction, there: Fraction, left: _Side, right: _Side, *, shares: bool) -> bool:
    if here == there:
        return True
    number = right.numbers[0]
    if left.computes and right.computes:
        first = label_forms.value(number.removesuffix("%"), "number")
        negative = right.tokens[0] == "-"
        if first is not None and abs(here - (-first if negative else first)) < _unit(number):  # "2 + 3 = 5 * 4 = 20"
            return True
        unit = max((_unit(one) for one in right.numbers if "." in one), default=Fraction(0))
        return abs(here - there) < unit
    unit = _unit(left.numbers[0] if right.computes else number)
    return abs(here - there) < (unit / 100 if shares and number[-1] == "%" else unit)


def _unit(number: str) -> Fraction:
    """One in the last decimal place written."""
    return Fraction(1, 10 ** len(number.removesuffix("%").partition(".")[2]))


def _mixed_units(words: Sequence[str]) -> bool:
    found: dict[str, str] = {}
    for word in words:
        for unit in (word, word.removesuffix("s"), word.removesuffix("es")):
            if unit in _DIMENSIONS:
                if found.setdefault(_DIMENSIONS[unit], unit) != unit:
                    return True
                break
    return False


def _decimal(value: Fraction) -> str:
    """A value with at most four decimals, without an exponent."""
    scaled = round(abs(value) * 10_000)
    whole, part = divmod(scaled, 10_000)
    digits = f"{whole}.{part:04}".rstrip("0").rstrip(".")
    return plain(f"-{digits}" if value < 0 else digits, 60)
