"""A filter of private data: addresses, numbers and keys by which someone could be reached, charged or impersonated.

    private_data(example)  ->  "it holds an e-mail address: 'jo.doe@uni-bonn.de'"

Each kind is found by its form and, where it has one, by its check digits: cards by Luhn's, IBANs by ISO 13616 and the form of their
country, telephone numbers by the numbering plans of the library phonenumbers, IP addresses by what IANA has given out.

Limits: names and postal addresses are not looked for. Telephone numbers without "+" and country code are found only where ``region``
names a country. The forms of keys are those that their issuers document; passwords have none.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Final, Literal

from pydantic import Field

from pipeline.filters.reading import written
from pipeline.records import Example

Kind = Literal["email", "phone", "card", "iban", "ip", "key"]
KINDS: Final[tuple[Kind, ...]] = ("email", "phone", "card", "iban", "ip", "key")
NAMES: Final[dict[Kind, str]] = {
    "email": "an e-mail address",
    "phone": "a telephone number",
    "card": "the number of a payment card",
    "iban": "an IBAN",
    "ip": "an IP address",
    "key": "a secret key",
}

# Every repeat is bounded or possessive, so that no text takes more than linear time.
_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w.+%-]{1,64}+@(?P<domain>(?:[^\W_](?:[\w-]{0,61}+)\.(?=[^\W_])){1,5}+[^\W\d_]{2,24})(?![\w-])"
)
_RESERVED = re.compile(r"(?:^|\.)(?:example\.(?:com|net|org)|example|test|invalid|localhost)$", re.IGNORECASE)
# A number may stand behind a telephone number: groups of digits are taken off the end until a valid number is left.
_PHONE = re.compile(r"\+(?<![\w+]\+)[1-9][0-9 ().\-/]{6,22}[0-9](?!\w)")
_LOCAL_PHONE = re.compile(r"(?<![\w+.,])[(+]?[0-9][0-9 ().\-/]{5,22}[0-9](?!\w)")
_LAST_GROUP = re.compile(r"(?:[^0-9]{1,22}|^)[0-9]{1,24}$")
FEWEST_DIGITS: Final = 7  # of a telephone number
_CARD = re.compile(
    r"(?<![\w.,-])(?:[2-6][0-9]{12,18}|[2-6][0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{1,7}|3[47][0-9]{2}([ -])[0-9]{6}\2[0-9]{5})(?![\w-])"
)
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_IP4 = re.compile(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?!\.?\w)")
_IP6 = re.compile(r"(?<![\w:])[0-9a-fA-F:]{6,39}(?![\w:])")
_KEYS: Final = {  # what the key contains, looked for first -> its form, as its issuer documents it
    "AKIA": re.compile(r"(?<!\w)AKIA[0-9A-Z]{16}(?!\w)"),  # Amazon Web Services
    **{f"gh{kind}_": re.compile(rf"(?<!\w)gh{kind}_[A-Za-z0-9]{{36,251}}(?!\w)") for kind in "opsur"},  # GitHub
    "github_pat_": re.compile(r"(?<!\w)github_pat_\w{60,90}(?!\w)"),
    "glpat-": re.compile(r"(?<!\w)glpat-[\w-]{20,60}(?!\w)"),  # GitLab
    "sk-": re.compile(r"(?<![\w-])sk-(?=[\w-]{0,200}[0-9])[\w-]{32,200}(?![\w-])"),  # OpenAI, Anthropic
    "k_live_": re.compile(r"(?<!\w)[rs]k_live_[0-9a-zA-Z]{16,200}(?!\w)"),  # Stripe
    "xox": re.compile(r"(?<!\w)xox[abeoprs]-[0-9A-Za-z-]{20,200}(?!\w)"),  # Slack
    "AIza": re.compile(r"(?<!\w)AIza[\w-]{35}(?![\w-])"),  # Google
    "hf_": re.compile(r"(?<!\w)hf_[A-Za-z]{34}(?!\w)"),  # Hugging Face
    "PRIVATE KEY": re.compile(r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY(?: BLOCK)?-----"),  # PEM, PGP
}

_WITHOUT_DIGITS: Final = ("hf_", "AKIA", "PRIVATE KEY")  # what may stand in a key that has none
_IN_KEYS: Final = ("_", "-", "AKIA", "AIza", "PRIVATE KEY")  # one of these stands in each of them


def private_data(
    example: Example,
    *,
    kinds: Sequence[Kind] = KINDS,
    given: bool = False,
    region: Annotated[str, Field(pattern="^[A-Z]{2}$")] | None = None,
) -> str | None:
    """The rationale (in a free response: the text) holds private data: an e-mail address, telephone number, card, IBAN, IP address or key.

    The reason names its kind and place and does not repeat it. What stands in the input as well counts only with ``given``: the student
    sees the input anyway, and a rationale may have to speak of it.
    ``region``: the country (ISO 3166) whose telephone numbers are found without their country code.
    """
    text = written(example)
    if not any(map(text.__contains__, "0123456789@")) and not any(map(text.__contains__, _WITHOUT_DIGITS)):
        return None  # nothing that is looked for does without any of these
    for kind in kinds:
        for found in _FINDERS[kind](text, region):
            if given or found not in example.input:
                start = text.index(found)
                return f"it holds {NAMES[kind]}, at characters {start + 1:,} to {start + len(found):,}"
    return None


def _emails(text: str, region: str | None) -> Iterator[str]:
    if "@" in text:
        for match in _EMAIL.finditer(text):
            if not _RESERVED.search(match["domain"]):
                yield match[0]


def _phones(text: str, region: str | None) -> Iterator[str]:
    pattern = _PHONE if region is None else _LOCAL_PHONE
    if region is None and "+" not in text:
        return
    for match in pattern.finditer(text):
        import phonenumbers

        said = match[0]
        while sum(map(str.isdigit, said)) >= FEWEST_DIGITS:
            try:
                number = phonenumbers.parse(said, region)
            except phonenumbers.NumberParseException:
                break
            if phonenumbers.is_valid_number(number):
                yield said
                break
            said = _LAST_GROUP.sub("", said)


def _cards(text: str, region: str | None) -> Iterator[str]:
    for match in _CARD.finditer(text) if _many_digits(text) else ():
        from stdnum import luhn

        if luhn.is_valid(re.sub("[ -]", "", match[0])):
            yield match[0]


def _ibans(text: str, region: str | None) -> Iterator[str]:
    for match in _IBAN.finditer(text) if _many_digits(text) else ():
        from stdnum import iban

        if iban.is_valid(match[0]):
            yield match[0]


def _ips(text: str, region: str | None) -> Iterator[str]:
    found = list(_IP4.finditer(text)) if text.count(".") > 2 and _DOTTED.search(text) else []
    found += _IP6.finditer(text) if text.count(":") > 1 else []
    for match in found:
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            continue
        if address.is_global:
            yield match[0]


def _keys(text: str, region: str | None) -> Iterator[str]:
    for part, pattern in _KEYS.items() if any(map(text.__contains__, _IN_KEYS)) else ():
        if part in text and (match := pattern.search(text)):
            yield match[0]


_DOTTED = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]")
_FOUR_DIGITS = re.compile("[0-9]{4}")


@lru_cache(maxsize=1)  # asked by two kinds
def _many_digits(text: str) -> bool:
    return _FOUR_DIGITS.search(text) is not None


_FINDERS: Final[dict[Kind, Callable[[str, str | None], Iterator[str]]]] = {
    "email": _emails,
    "phone": _phones,
    "card": _cards,
    "iban": _ibans,
    "ip": _ips,
    "key": _keys,
}
