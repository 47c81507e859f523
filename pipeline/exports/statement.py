"""The in-toto Statement that ``stepdistill sign`` signs, unsigned: every manifest in force by its SHA-256, every shard by its root.

    {"_type": "https://in-toto.io/Statement/v1", "subject": [{"name": "shard/59../manifest.json", "digest": {"sha256": ".."}}, ..], ..}

Source and form: ``pipeline.envelopes``. Limits: without a signature it says what there is, and nobody vouches for it.
"""

from pipeline import envelopes
from pipeline.exports import View


def render(shown: View) -> str:
    """The very bytes that would be signed, and a newline."""
    return envelopes.statement(shown.results.values()).payload().decode() + "\n"
