"""Labels in one spelling; equations by exact value."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import labels, text
from pipeline.labels import key, normalise, same, value

TOPICS = ["sports", "food", "C", "C++", "New York", "U.S."]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("sports", "sports"),
        (" SPORTS. ", "sports"),
        ("**Sports**", "sports"),
        ("'new-york'", "New York"),
        ("c", "C"),
        ("c++", "C++"),
        ("U.S", "U.S."),
        ("football", "football"),
        ("Football.", "Football"),
        ("sports or food", "sports or food"),
        ("e.g. this.", "e.g. this."),
        ("", None),
        ("  ", None),
        (".", None),
    ],
)
def test_text_labels(raw: str, expected: str | None) -> None:
    assert normalise(raw, "text", labels=TOPICS) == expected


@given(
    said=st.sampled_from(["c", "C", "c++", "C ++", "new york", "New-York", "NEW  YORK", "ｃ", "sports"]),
    options=st.lists(
        st.sampled_from(["C", "c", "C++", "New York", "new york", "new-york", "Ｃ", "sports "]), max_size=5
    ),
)
def test_the_strictest_comparison_that_finds_an_option_decides(said: str, options: list[str]) -> None:
    found = normalise(said, "text", labels=options)
    for compare in (str, text.fold, text.normalise):
        equal = {option for option in options if compare(option) == compare(" ".join(said.split()))}
        if equal:
            assert found == (equal.pop() if len(equal) == 1 else " ".join(said.split()))
            return
    assert found == " ".join(said.split())


def test_text_without_a_set_stays_as_it_was_said() -> None:
    assert normalise("  New\n York. ", "text") == "New York"
    assert normalise("U.S.", "text") == "U.S."


CHOICES = ["river", "bank", "Look at it.", "bank account"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("(b) bank", "bank"),
        ("(B) Bank.", "bank"),
        ("b", "bank"),
        ("(b)", "bank"),
        ("B.", "bank"),
        ("b) bank", "bank"),
        ("bank", "bank"),
        ("look at it", "Look at it."),
        ("(d) bank account", "bank account"),
        ("(a) bank", "bank"),  # the text counts where the letter disagrees
        ("(b) banck", "(b) banck"),  # neither is guessed
        ("(f)", "(f)"),
        ("either (a) river or (b) bank", "either (a) river or (b) bank"),
    ],
)
def test_choices(raw: str, expected: str) -> None:
    assert normalise(raw, "choice", choices=CHOICES) == expected


def test_a_letter_that_is_itself_a_choice_names_that_choice() -> None:
    assert normalise("a", "choice", choices=["b", "a"]) == "a"


def test_choices_that_look_alike_are_not_guessed_between() -> None:
    assert normalise("its", "choice", choices=["it's", "its'"]) == "its"
    assert normalise("bridge", "choice", choices=["bridge", "bridge"]) == "bridge"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("1,200", "1200"),
        ("$3.50", "3.5"),
        ("-$5", "-5"),
        ("42.", "42"),
        ("-0.0", "0"),
        ("007", "7"),
        ("−3", "-3"),
        (".5", "0.5"),
        ("１２", "１２"),  # full-width digits are handed back, not guessed
        ("1,20", "1,20"),
        ("12 apples", "12 apples"),
        ("1e3", "1e3"),
    ],
)
def test_numbers(raw: str, expected: str) -> None:
    assert normalise(raw, "number") == expected


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_numbers_keep_their_value(number: object) -> None:
    shown = normalise(f"${number:,}", "number")
    assert shown is not None and Fraction(shown) == Fraction(str(number)) == value(shown, "number")
    assert normalise(shown, "number") == shown
    assert same(f"{number:,}", shown, "number")


@pytest.mark.parametrize(
    ("raw", "expected", "result"),
    [
        ("( ( 12.0 - 2.0 ) - 7.0 )", "(12 - 2) - 7", Fraction(3)),
        ("x = ((84.0/2))", "84 / 2", Fraction(42)),
        ("84/2 = 42.", "84 / 2", Fraction(42)),
        ("(84 / 2 = 42)", "84 / 2", Fraction(42)),
        ("= 42", "42", Fraction(42)),
        ("-(-5) * .50", "-(-5) * 0.5", Fraction(5, 2)),
        ("3 - -2", "3 - -2", Fraction(5)),
        ("2 × 3 ÷ 4", "2 * 3 / 4", Fraction(3, 2)),
        ("$1,200 + $1", "1200 + 1", Fraction(1201)),
        ("10 - 4 - 3", "10 - 4 - 3", Fraction(3)),
        ("24 / 4 / 2", "24 / 4 / 2", Fraction(3)),
        ("2 + 3 * 4", "2 + 3 * 4", Fraction(14)),
        ("(1) + (2)", "(1) + (2)", Fraction(3)),
        ("some - 8", "some - 8", None),
        ("(7x = 14)", "(7x = 14)", None),
        ("(3 + 4) and (6 - 1)", "(3 + 4) and (6 - 1)", None),
        ("(175, 5)", "(175, 5)", None),
        ("1 / 0", "1 / 0", None),
        ("(1)(2)", "(1)(2)", None),
        ("1 2", "1 2", None),
        ("((1 + 2)", "((1 + 2)", None),
        ("2 ** 3", "2 ** 3", None),
        ("__import__('os')", "__import__('os')", None),
    ],
)
def test_equations(raw: str, expected: str, result: Fraction | None) -> None:
    assert normalise(raw, "equation") == expected
    assert value(raw) == result
    assert value(expected) == result


def test_equations_have_limits() -> None:
    deep = labels.DEEPEST_EQUATION
    assert value("(" * (deep - 1) + "1" + ")" * (deep - 1)) == 1
    assert value("(" * 400 + "1" + ")" * 400) is None
    assert value("-" * 900 + "1") is None
    assert value("+".join("1" * 400)) == 400
    assert value("1+" * 100_000 + "1") is None
    assert value("9" * 900 + "*2") == int("9" * 900) * 2


_NUMBERS = st.integers(0, 99).map(lambda number: (str(number), Fraction(number)))


def _combined(parts: st.SearchStrategy[tuple[str, Fraction]]) -> st.SearchStrategy[tuple[str, Fraction]]:
    def combine(left: tuple[str, Fraction], sign: str, right: tuple[str, Fraction], space: str) -> tuple[str, Fraction]:
        if sign == "/" and right[1] == 0:
            sign = "+"
        results = {"+": left[1] + right[1], "-": left[1] - right[1], "*": left[1] * right[1]}
        result = left[1] / right[1] if sign == "/" else results[sign]
        return f"({left[0]}{space}{sign}{space}{right[0]})", result

    return st.builds(combine, parts, st.sampled_from("+-*/"), parts, st.sampled_from(["", " ", "  "]))


@given(st.recursive(_NUMBERS, _combined, max_leaves=8))
def test_equations_have_the_value_that_arithmetic_gives(equation: tuple[str, Fraction]) -> None:
    written, result = equation
    assert value(written) == result
    shown = normalise(written, "equation")
    assert shown is not None and value(shown) == result
    assert normalise(shown, "equation") == shown
    assert same(written, shown, "equation")


@given(
    st.text(alphabet="0123456789+-*/()=., xab$", max_size=30), st.sampled_from(["text", "choice", "number", "equation"])
)
def test_normalising_twice_changes_nothing(raw: str, kind: labels.LabelType) -> None:
    once = normalise(raw, kind)
    if once is not None:
        assert normalise(once, kind) == once
        assert value(once) == value(raw) or kind != "equation"


@given(st.text(max_size=60))
def test_any_text_is_answered(raw: str) -> None:
    value(raw)
    for kind in ("text", "choice", "number", "equation"):
        normalise(raw, kind, TOPICS, CHOICES)  # type: ignore[arg-type]


def test_same() -> None:
    assert same("Sports", " sports.", "text")
    assert not same("C", "C++", "text")
    assert same("(30 - 23)", "( 30.0 - 23.0 )", "equation")
    assert same("7 * 36", "36*7", "equation")
    assert not same("some - 8", "some - 8", "equation")  # without a value there is nothing to be equal
    assert not same("610769 + 590796 + 22", "610769 + 590796", "equation")  # no tolerance
    assert not same("10 / 3", "3.33", "equation")
    assert same("$1,200.00", "1200", "number")


def test_a_number_of_thousands_of_digits_has_no_value() -> None:
    assert value("9" * 5000, "number") is None and value("9" * 5000, "equation") is None
    assert key("9" * 5000, "number") == "9" * 5000
