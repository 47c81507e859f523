"""A filter of the language, by Compact Language Detector 2 (the library pycld2), which carries its tables and asks no network.

CLD2 (Sites 2013, https://github.com/CLD2Owners/cld2) is a naive Bayes classifier over runs of four letters, over whole words in
scripts without spaces, for 83 languages and more. It says itself whether its answer is reliable; where it is not, the example passes.

Limits: texts of fewer than ``letters`` letters pass (a Chinese, Japanese or Korean one says about as much as three of an alphabet, and
counts as three), and so do languages that CLD2 confuses (Norwegian and Danish, Bosnian and
Croatian) more often than others. A rationale that quotes another language at length is a mixture: ``share`` decides.
"""

import re
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator, Field

from pipeline.filters.reading import Count, quoted, written
from pipeline.records import Example


def _known(code: str) -> str:
    import pycld2

    codes = {code for _, code in pycld2.LANGUAGES}
    if code not in codes:
        raise ValueError("unknown language; write its code, such as en or zh")
    return code


DENSE = 3  # letters of an alphabet that one of these counts as: Kana, Han, Hangul
_DENSE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")

Language = Annotated[str, AfterValidator(_known)]


def language(
    example: Example,
    *,
    expected: Language | None = None,
    share: Annotated[float, Field(gt=0, le=1)] = 0.8,
    letters: Count = 40,
) -> str | None:
    """The rationale (in a free response: the text) is in another language than ``expected`` or, where none is named, than the input.

    It is dropped where CLD2 is sure and at least ``share`` of the text is in one other language. ``expected`` is an ISO 639 code ("en").
    """
    text = written(example)
    found = _language(text, share, letters)
    if found is None or found == expected:
        return None
    wanted = expected or _language(example.input, share, letters)
    if wanted is None or wanted == found:
        return None
    of = "" if expected else ", the language of the input"
    return f"it is in {found}, not in {wanted}{of}: {quoted(text)}"


@lru_cache(maxsize=16)
def _language(text: str, share: float, letters: int) -> str | None:
    """The code of the language that nearly all of ``text`` is in, or None."""
    import pycld2

    if DENSE * len(text) < letters or sum(map(str.isalpha, text)) + (DENSE - 1) * len(_DENSE.findall(text)) < letters:
        return None
    readable = "".join(character if character.isprintable() else " " for character in text)
    try:
        sure, _, found = pycld2.detect(readable.encode("utf-8", "replace"), isPlainText=True)
    except pycld2.error:
        return None
    code, percent = found[0][1:3]
    return code if sure and code != "un" and percent >= 100 * share else None
