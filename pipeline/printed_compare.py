"""What `compare` prints: what is alike in a line, and tables of what is not."""

import re
from typing import TYPE_CHECKING

from pipeline.printed import table

if TYPE_CHECKING:
    from pipeline.compare import Changed, Compared, Missing

LONGEST = 120  # characters of a value


def compared(found: "Compared") -> None:
    """All that differs between two runs, and no table where nothing does."""
    from pipeline.files import plain

    print(f"{plain(found.first)} -> {plain(found.second)}")
    if found.same:
        print(f"the same results: {', '.join(found.same)}")
    for path, stages in ((found.first, found.only_first), (found.second, found.only_second)):
        if stages:
            print(f"only in {plain(path)}: {', '.join(stages)}")
    _changes("setting", found.settings)
    _changes("read, and who answered", found.inputs)
    if found.made_by:
        rows = [(one.place, _value(one.first), _value(one.second), ", ".join(one.stages)) for one in found.made_by]
        table(("made by", "before", "now", "in"), rows)
    _rows(found)
    _examples(found)
    _models(found)
    for note in found.notes:
        print(f"note: {plain(note, 1000)}")
    if not (found.settings or found.inputs or found.made_by or found.only_first or found.only_second):
        print("made alike: the same settings, inputs, models, code and environment")


def _value(value: str | None) -> str:
    if value is None:
        return ""
    if re.fullmatch(r'"[0-9a-f]{32,64}"', value):  # the digests of two things tell apart by their first digits
        return f"{value[1:13]}.."
    return value if len(value) <= LONGEST else value[: LONGEST - 2] + ".."


def _changes(title: str, found: dict[str, "list[Changed]"]) -> None:
    rows = [
        (f"{stage}.{one.place}", _value(one.first), _value(one.second))
        for stage, changes in found.items()
        for one in changes
    ]
    if rows:
        table((title, "before", "now"), rows)


def _rows(found: "Compared") -> None:
    rows, reasons = [], []
    for one in found.rows:
        if one.first is None or one.second is None:
            continue
        if one.first != one.second:
            figures = (_pair(one.first[name], one.second[name]) for name in ("in", "kept", "dropped"))
            rows.append((one.stage, *figures, f"{one.second['kept'] - one.first['kept']:+,}", one.unit))
        for reason, (before, now) in one.reasons.items():
            if before != now:
                reasons.append((one.stage, reason, f"{before:,}", f"{now:,}", f"{now - before:+,}"))
    if rows:
        table(("rows of", "in", "kept", "dropped", "difference", "unit"), rows, right=(1, 2, 3, 4))
    if reasons:
        table(("dropped by", "reason", "before", "now", "difference"), reasons, right=(2, 3, 4))


def _pair(before: int, now: int) -> str:
    return f"{before:,}" if before == now else f"{before:,} -> {now:,}"


def _examples(found: "Compared") -> None:
    if found.examples is None:
        return
    one = found.examples
    changed = f" ({one.changed:,} of them with another content)" if one.changed else ""
    behind = one.first_stage if one.first_stage == one.second_stage else f"{one.first_stage} and {one.second_stage}"
    print(
        f"examples behind {behind}: {one.both:,} in both{changed}, {one.only_first.rows:,} only before, {one.only_second.rows:,} only now"
    )
    _missing("before", "now", one.only_first)
    _missing("now", "before", one.only_second)


def _missing(here: str, there: str, one: "Missing") -> None:
    from pipeline.files import plain

    if one.rows:
        why = ", ".join(
            f"{plain(reason)} {rows:,}" for reason, rows in sorted(one.became.items(), key=lambda pair: -pair[1])
        )
        ids = ", ".join(plain(row, 60) for row in one.ids)
        print(f"    only {here}: {ids}{', ..' if one.rows > len(one.ids) else ''}; {there}: {why}")


def _models(found: "Compared") -> None:
    from pipeline.files import plain

    for one in found.eval_sets:
        rows = [
            (
                figure.model,
                figure.name.rpartition(".")[2],
                _figure(figure.first),
                _figure(figure.second),
                _by(figure.first, figure.second),
            )
            for figure in one.figures
            if figure.first != figure.second
        ]
        if rows:
            table((f"on {one.eval_set}", "figure", "before", "now", "difference"), rows, right=(2, 3, 4))
        for model, paired in one.paired.items():
            same = not paired.only_first and not paired.only_second
            said = f"{model}: right and wrong on the same rows" if same else paired.sentence
            print(plain(f"{one.eval_set}, {one.paired_rows[model]:,} rows of both: {said}", 1000))
        if one.note is not None:
            print(f"{plain(one.eval_set)}: {one.note}")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _by(before: float | None, now: float | None) -> str:
    return "" if before is None or now is None else f"{now - before:+.3f}"
