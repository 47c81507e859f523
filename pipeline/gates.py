"""Gates: what an evaluation must reach, as conditions on its figures.

    gates: {accuracy: ">= 0.7", "accuracy_vs_teacher": ">= -0.02", ece: "<= 0.1", "hard.macro_f1": "> 0.6"}

| name | what it is |
|---|---|
| accuracy, macro_f1, exact_match, rouge_l, chrf, answered, same_as_teacher, ece, brier | the student's figure (``metrics.scalars``) |
| ``<figure>_vs_<model>`` | the student's figure minus that of another model: teacher, baseline, majority, nearest, or one of ``models`` |
| ``<eval set>.<name>`` | the same on one eval set; without it the gate must hold on every eval set |

A gate judges a result and changes none of it, so a changed gate runs nothing anew. A figure that is not there fails its gate.
"""

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Final

from pydantic import AfterValidator

from pipeline.files import InputError, plain
from pipeline.metrics import Metrics, ModelMetrics, SetMetrics, scalars
from pipeline.records import Record

CONDITION: Final = re.compile(r"\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
HOLDS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
FIGURES: Final = (
    "accuracy", "macro_f1", "exact_match", "rouge_l", "chrf", "answered", "same_as_teacher", "ece", "brier",
)  # fmt: skip
VERSUS: Final = "_vs_"


def _conditions(given: dict[str, str]) -> dict[str, str]:
    for name, condition in given.items():
        if CONDITION.fullmatch(condition) is None:
            raise ValueError(f"{name}: {condition!r} is no condition; write it as '>= 0.7' or '< 0.1'")
        figure = name.rpartition(".")[2].partition(VERSUS)[0]
        if figure not in FIGURES:
            raise ValueError(f"{name}: unknown figure; known: {', '.join(FIGURES)}")
    return given


Gates = Annotated[dict[str, str], AfterValidator(_conditions)]
"""Name of a figure -> condition, as settings hold them."""


def read(given: Iterable[str]) -> dict[str, str]:
    """Gates as a command line has them, ``accuracy >= 0.7``. Raises InputError."""
    found = {}
    for gate in given:
        name = re.split("[<>]", gate, maxsplit=1)[0]
        found[name.strip()] = gate.removeprefix(name)
    try:
        return _conditions(found)
    except ValueError as error:
        raise InputError(f"--gate {plain(str(error))}") from None


def among(gates: Mapping[str, str], models: Iterable[str]) -> dict[str, str]:
    """Those of the gates that are about no other model than these."""
    known = {*models}
    return {
        name: condition
        for name, condition in gates.items()
        if VERSUS not in name or name.rpartition(VERSUS)[2] in known
    }


class Verdict(Record):
    """What became of one gate on one eval set."""

    eval_set: str
    gate: str
    condition: str
    value: float | None
    passed: bool

    def told(self) -> str:
        """``test: accuracy 0.68, wanted >= 0.7: failed``."""
        said = "is not known" if self.value is None else f"{self.value:.4g}"
        return f"{self.eval_set}: {self.gate} {said}, wanted {self.condition.strip()}: {'passed' if self.passed else 'failed'}"


def judge(found: Metrics, gates: Mapping[str, str], model: str = "student") -> list[Verdict]:
    """A verdict for each gate and eval set that it is about, in the order of the gates. An eval set that is not there fails."""
    return [verdict for name, condition in gates.items() for verdict in _verdicts(found, name, condition, model)]


def _verdicts(found: Metrics, name: str, condition: str, model: str) -> Iterator[Verdict]:
    eval_set, _, figure = name.rpartition(".")
    matched = CONDITION.fullmatch(condition)
    assert matched is not None
    for place in [eval_set] if eval_set else [*found.eval_sets] or ["no eval set"]:
        value = _value(found.eval_sets.get(place), figure, model)
        passed = value is not None and HOLDS[matched[1]](value, float(matched[2]))
        yield Verdict(eval_set=place, gate=figure, condition=condition, value=value, passed=passed)


def _value(found: SetMetrics | None, name: str, model: str) -> float | None:
    figure, versus, other = name.partition(VERSUS)
    mine = _scalar(found, model, figure)
    if not versus or mine is None:
        return mine
    theirs = _scalar(found, other, figure)
    return None if theirs is None else round(mine - theirs, 9)  # so that 0.68 is 0.02 less than 0.7


def _scalar(found: SetMetrics | None, model: str, figure: str) -> float | None:
    measured: ModelMetrics | None = None if found is None else found.models.get(model)
    return None if measured is None else scalars(measured).get(figure)
