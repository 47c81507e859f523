"""Where each answer of the response store stands, as arrays that many processes can share.

    answers = located(store, crew)
    answers.of([family, ..], max_tokens=256)        # for each request the record that answers it, or None

Which record answers a request is what ``pipeline.responses`` says: the first of its family with the same ``max_tokens``, or with fewer
where it ended by itself. Limits: 40 bytes are held for each record; whether records are whole is the business of the check of the store.
"""

from array import array
from binascii import unhexlify
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import DecodeError

from pipeline.processes import Crew
from pipeline.records import decoded
from pipeline.responses import ENDED, HEAD, segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST: Final = 256 << 20  # bytes of a record


class Answer(msgspec.Struct, frozen=True):
    """What a row is made of; the names are those of ``responses.Stored``."""

    key: str
    finish_reason: str
    sample: int
    prompt_tokens: int
    completion_tokens: int
    text: str
    mean_logprob: float | None = None
    label_logprobs: dict[str, float] | None = None


@dataclass(frozen=True)
class Answers:
    """Places by family, sorted; of one family in the order of their arrival."""

    paths: list[Path]
    families: "NDArray[Any]"
    allowed: "NDArray[Any]"
    ended: "NDArray[Any]"
    segment: "NDArray[Any]"
    offset: "NDArray[Any]"

    def of(self, families: Sequence[bytes], max_tokens: int) -> list[Answer | None]:
        """The record that answers each request, by its family (16 bytes); None where there is none, or it cannot be read."""
        places = [*self._places(families, max_tokens)]
        found: list[Answer | None] = [None] * len(places)
        for number, path in enumerate(self.paths):
            here = [at for at, place in enumerate(places) if place >= 0 and self.segment[place] == number]
            if here:
                with path.open("rb") as file:
                    for at in sorted(here, key=lambda at: int(self.offset[places[at]])):
                        file.seek(int(self.offset[places[at]]))
                        try:
                            found[at] = decoded(Answer, file.readline(LONGEST))
                        except DecodeError:
                            continue
        return found

    def _places(self, families: Sequence[bytes], max_tokens: int) -> Iterator[int]:
        import numpy

        wanted = numpy.array(families, "S16")
        first = numpy.searchsorted(self.families, wanted).tolist()
        last = numpy.searchsorted(self.families, wanted, side="right").tolist()
        for start, end in zip(first, last, strict=True):
            yield next((place for place in range(start, end) if self._answers(place, max_tokens)), -1)

    def _answers(self, place: int, max_tokens: int) -> bool:
        return bool(self.allowed[place] == max_tokens or (self.ended[place] and self.allowed[place] < max_tokens))


def located(store: Path, crew: Crew) -> Answers:
    """The answers of a store; none where there is no store. Raises RunError where its list of segments is damaged."""
    import numpy

    paths = segments(store)
    weight = sum(path.stat().st_size for path in paths)
    parts = [*crew.in_order(_segment, ((path,) for path in paths), weight=weight)]
    families = numpy.frombuffer(b"".join(part[0] for part in parts), "S16")
    order = numpy.argsort(families, kind="stable")
    columns = [numpy.concatenate([numpy.zeros(0, part), *(found[at] for found in parts)]) for at, part in _COLUMNS]
    segment = numpy.repeat(numpy.arange(len(parts), dtype=numpy.int32), [len(part[0]) // 16 for part in parts])
    return Answers(paths, families[order], *(column[order] for column in (*columns[:2], segment, columns[2])))


_COLUMNS: Final = ((1, "i8"), (2, "?"), (3, "i8"))


def _segment(shared: None, path: Path) -> tuple[bytes, Any, Any, Any]:
    """Families, allowed tokens, whether they ended by themselves, and offsets of the records of one segment."""
    import numpy

    families: list[bytes] = []
    allowed, ended, offsets = array("q"), array("b"), array("q")
    offset = 0
    with path.open("rb") as file:
        for raw in file:
            head = HEAD.match(raw)
            if head is not None and raw.endswith(b"\n"):
                families.append(unhexlify(head[2]))
                allowed.append(int(head[3]))
                ended.append(head[4] == ENDED)
                offsets.append(offset)
            offset += len(raw)
    return (
        b"".join(families),
        numpy.array(allowed, numpy.int64),
        numpy.array(ended, numpy.bool_),
        numpy.array(offsets, numpy.int64),
    )
