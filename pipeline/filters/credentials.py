"""A filter of secrets: keys, tokens and passwords by the forms that the library detect-secrets knows.

    secrets(example)  ->  "the rationale holds a secret (GitHub Token), at characters 12 to 51"

It asks the library's detectors for their forms alone: nothing is verified, no address is called, no file is read. Those that guess are
left out unless ``also`` names them: in running text long words and numbers look random, and what follows "password:" is seldom one.
What a public IPv4 address is, `private_data` decides.

Limits: forms of issuers change, and a secret without one (a password in a sentence) is found by ``keyword`` at best. The library reads
lines; one longer than ``WINDOW`` is read in pieces that overlap, so that no text takes more than linear time, and a secret longer than the
overlap can be missed.
"""

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

from pipeline.files import InputError, plain
from pipeline.filters.reading import written
from pipeline.limits import TooLongError, bounded
from pipeline.records import Example

if TYPE_CHECKING:
    from detect_secrets.plugins.base import BasePlugin

Guess = Literal["keyword", "base64", "hex"]
WINDOW: Final = 2_048
OVERLAP: Final = 1_024
DETECTORS: Final = (  # module and class of each; the public IPv4 addresses of the library are left out
    "artifactory.ArtifactoryDetector aws.AWSKeyDetector azure_storage_key.AzureStorageKeyDetector "
    "basic_auth.BasicAuthDetector cloudant.CloudantDetector discord.DiscordBotTokenDetector "
    "github_token.GitHubTokenDetector gitlab_token.GitLabTokenDetector ibm_cloud_iam.IbmCloudIamDetector "
    "ibm_cos_hmac.IbmCosHmacDetector jwt.JwtTokenDetector mailchimp.MailchimpDetector npm.NpmDetector "
    "openai.OpenAIDetector private_key.PrivateKeyDetector pypi_token.PypiTokenDetector sendgrid.SendGridDetector "
    "slack.SlackDetector softlayer.SoftlayerDetector square_oauth.SquareOAuthDetector stripe.StripeDetector "
    "telegram_token.TelegramBotTokenDetector twilio.TwilioKeyDetector"
).split()
GUESSES: Final[dict[Guess, str]] = {
    "keyword": "keyword.KeywordDetector",
    "base64": "high_entropy_strings.Base64HighEntropyString",
    "hex": "high_entropy_strings.HexHighEntropyString",
}
# What stands in every form: so long a word, or one of these.
_WORTH_IT: Final = re.compile(r"\S{20}|://|PRIVATE KEY|AKC|AP[0-9A-F]|xox")


def secrets(example: Example, *, also: Sequence[Guess] = (), given: bool = False) -> str | None:
    """The rationale (in a free response: the text) or the label holds a secret: a key, token or password of a known form.

    The reason names its kind and place and does not repeat it, and neither does the drop. What stands in the input as well counts only with
    ``given``. ``also``: detectors that guess; ``keyword`` takes what follows words as "password" and "api_key", ``base64`` and ``hex``
    what looks random in quotes. Needs the package detect-secrets.
    """
    detectors = _detectors(tuple(also))
    parts = {"text" if example.label is None or example.rationale is None else "rationale": written(example)}
    if example.label is not None:
        parts["label"] = example.label
    for name, text in parts.items():
        if not also and not _WORTH_IT.search(text):
            continue
        try:
            found = bounded(_first, text, detectors, "" if given else example.input)
        except TooLongError as error:
            raise InputError(
                f"quality.filters.secrets: row {plain(example.id)}: its {name} {error}; put max_words before this filter"
            ) from None
        if found is not None:
            kind, start, end = found
            return f"the {name} holds a secret ({kind}), at characters {start + 1:,} to {end:,}"
    return None


def _first(text: str, detectors: "Sequence[BasePlugin]", known: str) -> tuple[str, int, int] | None:
    """Kind and place of the first secret that does not stand in ``known``."""
    for start, piece in _pieces(text):
        for detector in detectors:
            for place, value in _values(detector, piece):
                if value and not (known and value in known):
                    return str(detector.secret_type), start + place, start + place + len(value)
    return None


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """The lines, the long ones in pieces, each with the place where it begins."""
    start = 0
    for line in text.split("\n"):
        for place in range(0, max(1, len(line) - OVERLAP), WINDOW - OVERLAP):
            yield start + place, line[place : place + WINDOW]
        start += len(line) + 1


def _values(detector: "BasePlugin", line: str) -> Iterator[tuple[int, str]]:
    """What it finds, and where. Of a form that has groups the library itself gives the groups alone ("ghp"), so the forms are asked."""
    valid = getattr(detector, "is_formally_valid", lambda value: True)
    for form in getattr(detector, "denylist", ()):
        for match in form.finditer(line):
            value = match[0].strip()
            if valid(value):
                yield match.start() + match[0].index(value), value
    if not hasattr(detector, "denylist"):
        entropy = getattr(detector, "calculate_shannon_entropy", None)  # of those that look for what seems random
        for value in detector.analyze_string(line):
            if entropy is None or entropy(value) > getattr(detector, "entropy_limit", 0):
                yield max(0, line.find(value)), value


@lru_cache(maxsize=4)
def _detectors(also: tuple[Guess, ...]) -> "tuple[BasePlugin, ...]":
    from importlib import import_module

    shown = warnings.showwarning
    wanted = (named.split(".") for named in (*DETECTORS, *(GUESSES[guess] for guess in also)))
    try:
        return tuple(getattr(import_module(f"detect_secrets.plugins.{module}"), name)() for module, name in wanted)
    except ModuleNotFoundError as error:
        raise InputError(f"it needs the package {error.name}; pip install 'stepdistill[secrets]'") from None
    finally:
        if warnings.showwarning is not shown:  # the library turns all warnings of the program into lines of a log
            logging.captureWarnings(False)
