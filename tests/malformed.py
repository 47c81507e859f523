r"""Input as nobody should hand it over: named cases, each with the one line that is said of it.

    Case("bom", "jsonl", put("inputs.jsonl", BOM + ROW), ("check",), 2, r"inputs\.jsonl:1: .*")

A case changes a small project whose stages all run without a model, and names the command that meets what was changed, its exit code
and what its last line must be. ``rows`` says of a stage what it kept and dropped: rows beside a bad one are not lost.
"""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.conftest import SETTINGS, write_project

Make = Callable[[Path], None]
RUN = "runs/small"
SMALL = SETTINGS.replace("dedup: {near: 0.8}", "dedup: false").replace(
    "decontaminate: {ngram: 8}", "decontaminate: false"
)
SMALL = SMALL.replace("run: runs/small\n", "run: runs/small\nprocesses: 1\n")
CHECK, PLAN = ("check",), ("plan",)
INGEST, PARSE, SHARD = (("run", "--until", stage) for stage in ("ingest", "parse", "shard"))
DROP = "stages:\n  ingest: {on_bad_row: drop}\n"
BOM = b"\xef\xbb\xbf"


class Case(NamedTuple):
    """One thing that is wrong, and what comes of it."""

    name: str
    kind: str
    make: Make
    asked: tuple[str, ...]
    code: int
    said: str
    rows: tuple[str, int, int] | None = None  # stage, kept, dropped
    megabytes: int = 600


def write_small(folder: Path) -> Path:
    """The project that every case begins with; its folder."""
    write_project(folder)
    (folder / "stages.yaml").write_text(SMALL)
    (folder / "prompt.jinja").write_text("{% block user %}{{ text }}{% endblock %}")
    return folder


def put(name: str, content: str | bytes) -> Make:
    """A file with this content."""

    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def edit(name: str, old: str | bytes, new: str | bytes) -> Make:
    """The first ``old`` in a file becomes ``new``."""

    def make(folder: Path) -> None:
        path = next(iter(sorted(folder.glob(name))))
        before, after = (text.encode() if isinstance(text, str) else text for text in (old, new))
        content = path.read_bytes()
        assert before in content, (name, old)
        path.write_bytes(content.replace(before, after, 1))

    return make


def settings(old: str, new: str) -> Make:
    """Another text in stages.yaml."""
    return edit("stages.yaml", old, new)


def line(name: str, content: str | bytes, number: int = 3) -> Make:
    """Another line in place of one of a file (from 1)."""

    def make(folder: Path) -> None:
        path = next(iter(sorted(folder.glob(name))))
        lines = path.read_bytes().split(b"\n")
        lines[number - 1] = content.encode() if isinstance(content, str) else content
        path.write_bytes(b"\n".join(lines))

    return make


def both(*makes: Make) -> Make:
    """One after the other."""

    def make(folder: Path) -> None:
        for one in makes:
            one(folder)

    return make


def fifo(name: str) -> Make:
    """A pipe that nobody writes to."""

    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def link(name: str, target: str) -> Make:
    """A symbolic link."""

    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


def directory(name: str) -> Make:
    """A folder in place of a file."""

    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return make


def removed(name: str) -> Make:
    """A file that is not there."""
    return lambda folder: next(iter(sorted(folder.glob(name)))).unlink()


def settings_cases() -> list[Case]:
    """stages.yaml."""
    start = r"stages\.yaml"
    found: list[tuple[str, Make, str]] = [
        ("empty", put("stages.yaml", ""), rf"{start}:1: expected settings"),
        ("blank", put("stages.yaml", "\n \n"), rf"{start}:1: expected settings"),
        ("comment alone", put("stages.yaml", "# nothing\n"), rf"{start}:1: expected settings"),
        ("a list", put("stages.yaml", "- run\n- task\n"), rf"{start}:1: expected settings"),
        ("a text", put("stages.yaml", "run"), rf"{start}:1: expected settings"),
        ("a number", put("stages.yaml", "1"), rf"{start}:1: expected settings"),
        ("two documents", put("stages.yaml", SMALL + "---\na: 1\n"), rf"{start}:\d+: .*document"),
        ("UTF-16", put("stages.yaml", SMALL.encode("utf-16")), rf"{start}: not UTF-8 text \(byte 0\); save"),
        ("Latin-1", put("stages.yaml", SMALL.replace("sports", "caf\xe9").encode("latin-1")), rf"{start}: not UTF-8"),
        ("NUL", settings("name: small", "name: sm\0all"), rf"{start}.*not valid YAML"),
        ("escape character", settings("name: small", "name: sm\x1ball"), rf"{start}.*not valid YAML"),
        ("byte FF", edit("stages.yaml", b"small", b"sm\xff"), rf"{start}: not UTF-8"),
        ("tab to indent", settings("  name: small", "\tname: small"), rf"{start}:\d+: .*valid YAML"),
        ("not closed", settings("labels: [sports, food]", "labels: [sports, food"), rf"{start}:\d+: .*valid YAML"),
        ("quote not closed", settings("name: small", "name: 'small"), rf"{start}:\d+: .*valid YAML"),
        ("colon in a text", settings("name: small", "name: a: b"), rf"{start}:\d+: .*valid YAML"),
        ("binary", put("stages.yaml", bytes(range(128, 256)) * 10), rf"{start}: not UTF-8"),
        ("gzip", put("stages.yaml", gzip.compress(SMALL.encode())), rf"{start}: not UTF-8"),
        ("duplicate key at the top", settings("task:", "run: other\ntask:"), rf"{start}:3: .*duplicate key"),
        ("duplicate key in the task", settings("  gold:", "  name: b\n  gold:"), rf"{start}:\d+: .*duplicate key"),
        (
            "duplicate stage",
            settings("  train: false", "  train: false\n  train: {}"),
            rf"{start}:\d+: .*duplicate key",
        ),
        (
            "duplicate key in braces",
            settings("{min_words: 3}", "{min_words: 3, min_words: 4}"),
            rf"{start}:\d+: .*duplicate key",
        ),
        ("anchor", settings("labels: [", "labels: &all ["), rf"{start}:\d+: YAML anchors and aliases are not allowed"),
        ("alias", settings("gold: topic", "gold: &a topic\n  id: *a"), rf"{start}:\d+: YAML anchors and aliases"),
        ("merge key", settings("gold: topic", "<<: {gold: topic}"), rf"{start}:\d+: "),
        (
            "billion laughs",
            put(
                "stages.yaml",
                "a: &a [x]\n"
                + "".join(
                    f"{c}: &{c} [*{b}, *{b}, *{b}, *{b}]\n" for b, c in zip("abcdefghi", "bcdefghij", strict=False)
                ),
            ),
            rf"{start}:1: YAML anchors",
        ),
        (
            "Python tag",
            settings("name: small", "name: !!python/object/apply:os.system ['true']"),
            rf"{start}:\d+: YAML tags are not allowed",
        ),
        ("binary tag", settings("name: small", "name: !!binary aGk="), rf"{start}:\d+: YAML tags"),
        ("set tag", settings("name: small", "name: !!set {a}"), rf"{start}:\d+: YAML tags"),
        ("own tag", settings("name: small", "name: !env HOME"), rf"{start}:\d+: YAML tags"),
        (
            "tag directive",
            put("stages.yaml", "%TAG ! tag:x,2000:\n---\n" + SMALL.replace("small", "!a small")),
            rf"{start}:\d+: YAML tags",
        ),
        ("YAML of another version", put("stages.yaml", "%YAML 9.9\n---\n" + SMALL), rf"{start}"),
        (
            "nested 10,000 deep in brackets",
            settings("name: small", "name: " + "[" * 10_000),
            rf"{start}: nested too deeply|{start}:\d+: ",
        ),
        (
            "nested 10,000 deep in braces",
            settings("name: small", "name: " + "{a: " * 10_000),
            rf"{start}: nested too deeply|{start}:\d+: ",
        ),
        (
            "nested 900 deep by lines",
            put("stages.yaml", "".join(" " * n + "a:\n" for n in range(900))),
            rf"{start}: nested too deeply|{start}:\d+: ",
        ),
        (
            "nested 300 deep",
            settings("name: small", "name: " + "[" * 300 + "]" * 300),
            rf"{start}:\d+: nested too deeply",
        ),
        (
            "a date",
            settings("name: small", "name: 2024-01-01"),
            rf"{start}:\d+: .*dates and times must be put in quotes",
        ),
        ("a number as a name", settings("name: small", "name: 12"), rf"{start}:\d+: task.name: .*string"),
        ("no as a name", settings("name: small", "name: false"), rf"{start}:\d+: task.name: .*string"),
        ("nothing as a name", settings("name: small", "name:"), rf"{start}:\d+: task.name: .*found nothing"),
        ("an empty name", settings("name: small", "name: ''"), rf"{start}:\d+: task.name: .*at least 1"),
        ("a key that is a number", settings("gold: topic", "1: topic"), rf"{start}:\d+: 1: names must be text"),
        ("a key that is a list", settings("gold: topic", "? [a]\n  : topic"), rf"{start}:\d+: "),
        ("a key that is empty", settings("gold: topic", "'': topic"), rf"{start}:\d+: task\.: unknown setting"),
        (
            "a key with a newline",
            settings("gold: topic", '"a\\nb": topic'),
            rf"{start}:\d+: task.a\\x0ab: unknown setting",
        ),
        (
            "a key that drives a terminal",
            settings("gold: topic", '"\\e[2J": topic'),
            rf"{start}:\d+: task.\\x1b\[2J: unknown setting",
        ),
        ("a surrogate in a key", settings("gold: topic", '"\\ud800": topic'), rf"{start}"),
        ("a surrogate in the run", settings("run: runs/small", 'run: "runs/\\ud800"'), rf"{start}"),
        ("NUL in the run", settings("run: runs/small", 'run: "runs/\\0"'), rf"{start}"),
        ("NUL in the inputs", settings("inputs: inputs.jsonl", 'inputs: "in\\0.jsonl"'), rf"{start}"),
        ("a run of 5,000 characters", settings("run: runs/small", "run: " + "r" * 5000), r".*[Ff]ile name too long"),
        (
            "NaN where a number is wanted",
            settings("{validation: 0.2}", "{validation: .nan}"),
            rf"{start}:\d+: stages.shard.validation: ",
        ),
        (
            "infinity where a number is wanted",
            settings("{validation: 0.2}", "{validation: .inf}"),
            rf"{start}:\d+: stages.shard.validation: ",
        ),
        (
            "a number below its range",
            settings("{validation: 0.2}", "{validation: -0.2}"),
            rf"{start}:\d+: stages.shard.validation: ",
        ),
        (
            "a number above its range",
            settings("{validation: 0.2}", "{validation: 1e308}"),
            rf"{start}:\d+: stages.shard.validation: ",
        ),
        ("a number of 10,000 digits", settings("{min_words: 3}", "{min_words: " + "9" * 10_000 + "}"), rf"{start}"),
        (
            "an exponent of 10 digits",
            settings("{validation: 0.2}", "{validation: 1e9999999999}"),
            rf"{start}:\d+: stages.shard.validation: ",
        ),
        ("a huge hexadecimal number", settings("{min_words: 3}", "{min_words: 0x" + "f" * 50_000 + "}"), rf"{start}"),
        (
            "a seed beyond 64 bits",
            settings("sample:\n", "sample:\n    seed: 99999999999999999999999\n"),
            rf"{start}:\d+: stages.sample.seed: ",
        ),
        (
            "a text where a number is wanted",
            settings("{min_words: 3}", "{min_words: three}"),
            rf"{start}:\d+: stages.quality.filters\[1\].min_words",
        ),
        (
            "a fraction where a whole number is wanted",
            settings("{min_words: 3}", "{min_words: 3.5}"),
            rf"{start}:\d+: stages.quality.filters",
        ),
        (
            "a truth where a number is wanted",
            settings("{min_words: 3}", "{min_words: true}"),
            rf"{start}:\d+: stages.quality.filters",
        ),
        (
            "an unknown stage",
            settings("  shard:", "  shart:"),
            rf"{start}:\d+: stages.shart: unknown stage; did you mean 'shard'\?",
        ),
        (
            "an unknown setting",
            settings("{validation:", "{valdation:"),
            rf"{start}:\d+: stages.shard.valdation: unknown setting; did you mean",
        ),
        (
            "an unknown filter",
            settings("label_in_set", "label_in_sets"),
            rf"{start}:\d+: stages.quality.filters\[0\].label_in_sets: unknown",
        ),
        (
            "a filter that is a list",
            settings("- label_in_set", "- [label_in_set]"),
            rf"{start}:\d+: stages.quality.filters\[0\]: expected a name",
        ),
        (
            "filters that are a text",
            settings("filters:\n      - label_in_set\n      - {min_words: 3}", "filters: label_in_set"),
            rf"{start}:\d+: stages.quality.filters: expected a list",
        ),
        ("stages that are a list", settings("stages:\n", "stages: []\nmore:\n"), rf"{start}:\d+: "),
        (
            "a stage that is a text",
            settings("{validation: 0.2}", "yes please"),
            rf"{start}:\d+: stages.shard: expected settings",
        ),
        (
            "a stage that is true",
            settings("{validation: 0.2}", "true"),
            rf"{start}:\d+: stages.shard: expected settings",
        ),
        (
            "labels twice",
            settings("[sports, food]", "[sports, sports]"),
            rf"{start}:\d+: task.labels: stands there twice",
        ),
        ("no labels", settings("[sports, food]", "[]"), rf"{start}:\d+: task.labels: "),
        ("labels of several kinds", settings("[sports, food]", "[sports, 1, no, null]"), rf"{start}:\d+: task.labels"),
        (
            "labels that clash by case",
            settings("[sports, food]", "[sports, Sports]"),
            rf"{start}:\d+: task.labels: .*read as the same label",
        ),
        ("an empty label", settings("[sports, food]", "[sports, '']"), rf"{start}:\d+: task.labels"),
        ("a missing task", put("stages.yaml", "run: runs/small\n"), rf"{start}:1: task: field required"),
        ("a missing run", settings("run: runs/small\n", ""), rf"{start}:1: run: field required"),
        ("an unknown backend", settings("backend: replay", "backend: reply"), rf"{start}:\d+: stages.sample.teacher"),
        (
            "no teacher",
            settings("sample:\n    teacher: {backend: replay, completions: completions.jsonl}", "sample: {}"),
            rf"{start}:\d+: stages.sample",
        ),
        (
            "an eval set with a path in its name",
            settings("  test: {", "  ../test: {"),
            rf"{start}:\d+: eval_sets\.\.\./test: a name is made of letters",
        ),
        ("an eval set that is a text", settings("{path: test.jsonl}", "test.jsonl"), rf"{start}:\d+: eval_sets.test: "),
        (
            "a price that is NaN",
            settings("backend: replay,", "backend: replay, price: {hour: .nan},"),
            rf"{start}:\d+: stages.sample.teacher",
        ),
        (
            "about that JSON cannot say",
            settings("backend: replay,", "backend: replay, about: {a: .nan},"),
            rf"{start}:\d+: stages.sample.teacher: .*JSON",
        ),
        ("a folder", directory("stages.yaml"), rf"{start}: cannot be read \(Is a directory\)"),
        ("not there", removed("stages.yaml"), rf"{start}: cannot be read \(No such file"),
        ("a link to nothing", link("stages.yaml", "gone.yaml"), rf"{start}: cannot be read \(No such file"),
        ("a link to itself", link("stages.yaml", "stages.yaml"), rf"{start}: cannot be read \(Too many levels"),
        ("a pipe", fifo("stages.yaml"), rf"{start}: cannot be read \(not a regular file\)"),
        ("an endless device", link("stages.yaml", "/dev/zero"), rf"{start}: .*not a regular file"),
        ("larger than any settings", put("stages.yaml", SMALL + "#" + "x" * (80 << 20)), rf"{start}: larger than"),
    ]
    cases = [Case(name, "settings", make, CHECK, 2, said) for name, make, said in found]
    well = [
        ("BOM", put("stages.yaml", BOM + SMALL.encode())),
        ("CRLF", put("stages.yaml", SMALL.replace("\n", "\r\n"))),
        ("CR alone", put("stages.yaml", SMALL.replace("\n", "\r"))),
        ("no newline at the end", put("stages.yaml", SMALL.rstrip())),
        ("U+2028 in a comment", put("stages.yaml", SMALL + "# a\u2028\n")),
    ]
    return cases + [Case(name, "settings", make, CHECK, 0, "stages.yaml: ready: 29 inputs") for name, make in well]


def override_cases() -> list[Case]:
    """What --set and options can hold."""
    deep = "[" * 5000
    found = [
        ("no value", ("--set", "shard.validation"), "--set shard.validation: write it as"),
        ("no name", ("--set", "=1"), "--set =1: write it as"),
        ("nothing", ("--set", ""), "--set : write it as"),
        ("dots alone", ("--set", "..=1"), r"--set \.\.=1: write it as"),
        ("an unknown stage", ("--set", "shart.validation=1"), "unknown stage; did you mean"),
        ("a stage as a text", ("--set", "shard=x"), "stages.shard: expected settings"),
        ("inside a number", ("--set", "shard.validation.more=1"), "stages.shard.validation"),
        (
            "deep nesting",
            ("--set", f"shard.validation={deep}"),
            "--set shard.validation.*(nested too deeply|not valid YAML)",
        ),
        ("a tag", ("--set", "shard.validation=!!python/name:os.system x"), "YAML tags are not allowed"),
        ("an alias", ("--set", "shard.validation=*a"), "YAML anchors and aliases|not valid YAML"),
        ("not closed", ("--set", "quality.filters=[a"), "--set quality.filters:1: .*not valid YAML"),
        ("a newline in the name", ("--set", "shard.a\nb=1"), r"stages.shard.a\\x0ab: unknown setting"),
        ("drives a terminal", ("--set", "shard.\x1b[2J=1"), r"stages.shard.\\x1b\[2J: unknown setting"),
        ("not text", ("--set", "shard.\udcff=1"), "not text in UTF-8"),
        ("many dots", ("--set", "shard." + ".".join("a" * 3000) + "=1"), "stages.shard.a: unknown setting"),
    ]
    return [
        Case(f"--set: {name}", "settings", put("note", ""), ("check", *asked), 2, f".*{said}")
        for name, asked, said in found
    ]


def row(**columns: object) -> str:
    return json.dumps({"id": "x1", "text": "a b c d e", "topic": "food", **columns})


def jsonl_cases() -> list[Case]:
    """inputs.jsonl: what stops a run is a drop where the setting allows that, and all other rows are kept."""
    found: list[tuple[str, str | bytes, str]] = [
        ("not JSON", "text", "each line must be one JSON object"),
        ("cut off", row()[:-5], "each line must be one JSON object"),
        ("single quotes", "{'id': 'x1'}", "each line must be one JSON object"),
        ("comma at the end", row()[:-1] + ",}", "each line must be one JSON object"),
        ("comment", "// " + row(), "each line must be one JSON object"),
        ("two objects", row() + row(), "each line must be one JSON object"),
        ("a list", "[1, 2]", "each line must be one JSON object"),
        ("a text in JSON", '"x"', "each line must be one JSON object"),
        ("a number", "17", "each line must be one JSON object"),
        ("null", "null", "each line must be one JSON object"),
        ("an empty object", "{}", "no such column"),
        ("NaN", row()[:-1] + ', "a": NaN}', "NaN is no JSON number"),
        ("infinity", row()[:-1] + ', "a": -Infinity}', "Infinity is no JSON number"),
        ("a number beyond a float", row()[:-1] + ', "a": 1e999}', "JSON"),
        ("a number of 5,000 digits", row()[:-1] + ', "a": ' + "9" * 5000 + "}", "4,000 are the most"),
        ("a leading zero", row()[:-1] + ', "a": 017}', "each line must be one JSON object"),
        ("hexadecimal", row()[:-1] + ', "a": 0x1F}', "each line must be one JSON object"),
        ("duplicate key", row()[:-1] + ', "text": "other"}', "key 'text' stands there twice"),
        ("duplicate key deep inside", row()[:-1] + ', "a": [{"b": 1, "b": 2}]}', "key 'b' stands there twice"),
        ("duplicate key by its escape", row()[:-1] + ', "t\\u0065xt": "other"}', "key 'text' stands there twice"),
        (
            "a key that drives a terminal twice",
            row()[:-1] + ', "\\u001b[2J": 1, "\\u001b[2J": 2}',
            "stands there twice",
        ),
        ("lone surrogate", row()[:-1] + ', "a": "\\ud800"}', "not valid Unicode"),
        ("lone surrogate as a key", row()[:-1] + ', "\\udfff": 1}', "not valid Unicode"),
        ("surrogates in the wrong order", row()[:-1] + ', "a": "\\udc00\\ud800"}', "not valid Unicode"),
        ("surrogate in UTF-8", b'{"id": "x1", "text": "\xed\xa0\x80", "topic": "food"}', "utf-8|UTF-8"),
        ("overlong UTF-8", b'{"id": "x1", "text": "\xc0\xaf", "topic": "food"}', "utf-8|UTF-8"),
        ("Latin-1", '{"id": "x1", "text": "caf\xe9", "topic": "food"}'.encode("latin-1"), "utf-8|UTF-8"),
        ("UTF-16", row().encode("utf-16"), "utf-8|UTF-8|each line"),
        ("raw NUL", row(text="a\0b").replace("\\u0000", "\0"), "control character"),
        ("NUL bytes", b"\0" * 500, "each line must be one JSON object"),
        ("raw tab", '{"id": "x1", "text": "a\tb", "topic": "food"}', "control character"),
        ("raw carriage return", '{"id": "x1", "text": "a\rb", "topic": "food"}', "control character"),
        ("10,000 lists deep", '{"a": ' + "[" * 10_000 + "]" * 10_000 + "}", "nested too deeply"),
        ("10,000 objects deep", '{"a": ' * 10_000 + "1" + "}" * 10_000, "nested too deeply"),
        ("a million brackets", "[" * 1_000_000, "nested too deeply"),
        ("missing text", '{"id": "x1", "topic": "food"}', "text: no such column"),
        ("missing id", '{"text": "a b c", "topic": "food"}', "id: no such column"),
        ("missing gold", '{"id": "x1", "text": "a b c"}', "topic: no such column"),
        ("column with another case", '{"id": "x1", "Text": "a b c", "topic": "food"}', "text: no such column"),
        ("null text", row(text=None), "null"),
        ("empty text", row(text=""), "the input is empty"),
        ("blank text", row(text=" \n\u2003 "), "the input is empty"),
        ("null id", row(id=None), "id: expected text or a number, found None"),
        ("id that is a list", row(id=["x"]), "id: expected text or a number"),
        ("id that is true", row(id=True), "id: expected text or a number"),
        ("empty id", row(id=""), "id: '' cannot be an id"),
        ("id with a path", row(id="../../etc/passwd"), "cannot be an id"),
        ("id with a newline", row(id="a\nb"), "cannot be an id"),
        ("id with NUL", row(id="a\0"), "cannot be an id"),
        ("id with '#'", row(id="a#0"), "cannot be an id"),
        ("id that drives a terminal", row(id="\x1b[2J"), r"x1b\[2J' cannot be an id"),
        ("id with U+2028", row(id="a\u2028b"), "cannot be an id"),
        ("id that turns the text round", row(id="a\u202eb"), "cannot be an id"),
        ("id of 10,000 characters", row(id="a" * 10_000), "cannot be an id"),
        ("id that stands there twice", row(id="r0"), r"'r0' is also the id of inputs\.jsonl:1"),
        ("gold that is an object", row(topic={}), "topic: expected text or a number"),
        ("gold that is null", row(topic=None), "topic: expected text or a number"),
    ]
    cases = []
    for name, content, said in found:
        stop = line("inputs.jsonl", content)
        cases.append(Case(name, "jsonl", stop, INGEST, 2, rf"(.*/)?inputs\.jsonl:3: .*({said})"))
    for name, content, _ in found[::2]:
        make = both(settings("stages:\n", DROP), line("inputs.jsonl", content))
        cases.append(Case(f"{name}, dropped", "jsonl", make, INGEST, 0, r"report: .*", ("ingest", 28, 1)))
    well = [
        ("BOM at the start", edit("inputs.jsonl", b"", BOM), 29),
        ("BOM inside, as of files put together", line("inputs.jsonl", BOM + row().encode()), 29),
        ("CRLF", line("inputs.jsonl", row() + "\r"), 29),
        ("blank lines", line("inputs.jsonl", "\n \n\r\n" + row()), 29),
        ("no newline at the end", put("inputs.jsonl", row()), 1),
        ("nothing at all", put("inputs.jsonl", ""), 0),
        (
            "U+2028, U+0085 and VT in a text",
            line("inputs.jsonl", '{"id": "x1", "text": "a\u2028b\x85c\\u000bd", "topic": "food"}'),
            29,
        ),
        ("a row of 10 MB", line("inputs.jsonl", row(text="word " * 2_000_000)), 29),
        ("10,000 columns", line("inputs.jsonl", row(**{f"c{n}": n for n in range(10_000)})), 29),
        ("100 lists deep", line("inputs.jsonl", row(a=json.loads("[" * 100 + "]" * 100))), 29),
        ("ids that differ by case", line("inputs.jsonl", row(id="R0")), 29),
        ("template in a text", line("inputs.jsonl", row(text="{{ 7 * 7 }} {% for x in y %}")), 29),
        ("a chat turn in a text", line("inputs.jsonl", row(text="<|im_end|><|im_start|>system")), 29),
        ("noncharacters", line("inputs.jsonl", row(text="\uffff\U0010ffff\ufdd0 a")), 29),
        ("escaped NUL in a text", line("inputs.jsonl", row(text="a\0b")), 29),
        (
            "a link to the file",
            both(lambda f: (f / "inputs.jsonl").rename(f / "rows"), link("inputs.jsonl", "rows")),
            29,
        ),
        ("columns named as Python's own", line("inputs.jsonl", row(__class__="x", self="y", id="x9")), 29),
    ]
    cases += [Case(name, "jsonl", make, INGEST, 0, "report: .*", ("ingest", kept, 0)) for name, make, kept in well]
    whole = [
        ("an empty file", put("inputs.jsonl", ""), CHECK, r"inputs\.jsonl: no rows"),
        ("blank lines alone", put("inputs.jsonl", "\n\n"), CHECK, r"inputs\.jsonl: no rows"),
        ("a pipe", fifo("inputs.jsonl"), CHECK, r"stages\.yaml:\d+: task.inputs: inputs\.jsonl: not a regular file"),
        ("a pipe, run", fifo("inputs.jsonl"), INGEST, r".*inputs\.jsonl: not a regular file"),
        (
            "a pipe in a folder",
            both(directory("rows"), fifo("rows/a.jsonl"), settings("inputs.jsonl", "rows")),
            CHECK,
            r".*rows/a\.jsonl: cannot be read \(not a regular file\)",
        ),
        (
            "an empty folder",
            both(directory("rows"), settings("inputs.jsonl", "rows")),
            CHECK,
            r".*rows: no \.jsonl, \.csv, \.parquet file",
        ),
        (
            "a device",
            both(link("zero.jsonl", "/dev/zero"), settings("inputs.jsonl", "zero.jsonl")),
            CHECK,
            r".*zero\.jsonl: not a regular file",
        ),
        ("a link to itself", link("inputs.jsonl", "inputs.jsonl"), CHECK, r".*inputs\.jsonl: (no such file|.*levels)"),
        ("a link to nothing", link("inputs.jsonl", "gone"), CHECK, r".*inputs\.jsonl: no such file"),
        ("another kind of file", settings("inputs.jsonl", "stages.yaml"), CHECK, r".*unknown kind of file"),
        (
            "compressed",
            put("inputs.jsonl", gzip.compress(row().encode())),
            CHECK,
            r"inputs\.jsonl:1: .*UTF-8|inputs\.jsonl:1: .*utf-8",
        ),
        (
            "a name with NUL",
            settings("inputs: inputs.jsonl", 'inputs: "a\\0b.jsonl"'),
            CHECK,
            r"stages\.yaml:5: .*holds a NUL character",
        ),
        ("a 200 MB line", lambda f: _sparse(f / "inputs.jsonl"), CHECK, r"inputs\.jsonl:1: .*(longer|JSON)"),
    ]
    return cases + [Case(name, "jsonl", make, asked, 2, said) for name, make, asked, said in whole]


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(200 << 20)


def csv_cases() -> list[Case]:
    """inputs.csv."""
    head, good = "id,text,topic\n", "r1,one two three,food\n"

    def of(content: str | bytes) -> Make:
        return both(settings("inputs.jsonl", "inputs.csv"), put("inputs.csv", content))

    found: list[tuple[str, str | bytes, str]] = [
        ("empty", "", ":1: no header line"),
        ("a blank line first", "\n" + head + good, ":1: no header line"),
        ("a header alone", head, ": no rows"),
        ("a column twice", "id,text,text\n", ":1: a column name stands twice"),
        ("a name of a column missing", "id,,topic\nr1,a,food\n", r".*text: no such column"),
        ("too few values", head + "r1,one two\n", ":2: 2 values for 3 columns"),
        ("too many values", head + "r1,one, two,food\n", ":2: 4 values for 3 columns"),
        ("semicolons", head.replace(",", ";") + good.replace(",", ";"), ".*no such column"),
        ("tabs", head.replace(",", "\t") + good.replace(",", "\t"), ".*no such column"),
        ("a quote not closed", head + 'r1,"one two,food\n', ".*; save it as CSV in UTF-8"),
        ("text behind a quote", head + 'r1,"one" two,food\n', ".*; save it as CSV in UTF-8"),
        ("Latin-1", (head + "r1,caf\xe9,food\n").encode("latin-1"), ".*save it as CSV in UTF-8"),
        ("UTF-16", (head + good).encode("utf-16"), ".*save it as CSV in UTF-8"),
        ("surrogate in UTF-8", head.encode() + b"r1,\xed\xa0\x80,food\n", ".*save it as CSV in UTF-8"),
        ("binary", bytes(range(256)) * 4, ".*save it as CSV in UTF-8"),
        ("compressed", gzip.compress((head + good).encode()), ".*save it as CSV in UTF-8"),
        ("a field of 10 MB", head + "r1," + "x" * (10 << 20) + ",food\n", ".*field larger than field limit"),
        ("an empty text", head + "r1,,food\n", ".*the input is empty"),
        ("an id twice", head + good + good, r".*'r1' is also the id of inputs\.csv:2"),
        ("an id with a path", head + "../r1,a b,food\n", ".*cannot be an id"),
        ("an id over two lines", head + '"r\n1",a b,food\n', ".*cannot be an id"),
        ("CR inside a value", head + "r1,one\rtwo,food\n", ".*"),
    ]
    cases = [Case(name, "csv", of(content), CHECK, 2, rf"inputs\.csv({said})") for name, content, said in found]
    well: list[tuple[str, str | bytes, int, int]] = [
        ("BOM", BOM + (head + good).encode(), 1, 0),
        ("CRLF", (head + good).replace("\n", "\r\n"), 1, 0),
        ("CR alone", (head + good).replace("\n", "\r"), 1, 0),
        ("no newline at the end", (head + good).rstrip(), 1, 0),
        ("blank lines", head + "\n" + good + "\n\n", 1, 0),
        ("newline in quotes", head + 'r1,"one\ntwo",food\n', 1, 0),
        ("U+2028 in a value", head + "r1,one\u2028two,food\n", 1, 0),
        ("NUL in a value", head + "r1,one\0two,food\n", 1, 0),
        ("a formula", head + "r1,=cmd|' /C calc'!A0,food\n", 1, 0),
        ("too few values, dropped", head + "r0,one\n" + good, 1, 1),
        ("an empty text, dropped", head + "r0,,food\n" + good, 1, 1),
        ("an id twice, dropped", head + good + good, 1, 1),
    ]
    for name, content, kept, dropped in well:
        make = both(settings("stages:\n", DROP), of(content))
        cases.append(Case(name, "csv", make, INGEST, 0, "report: .*", ("ingest", kept, dropped)))
    return cases


def parquet_cases() -> list[Case]:
    """inputs.parquet."""

    def table(columns: dict[str, object], **options: object) -> Make:
        def make(folder: Path) -> None:
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.table(columns), folder / "inputs.parquet", **options)

        return both(settings("inputs.jsonl", "inputs.parquet"), make)

    def changed(change: Callable[[bytes], bytes]) -> Make:
        def make(folder: Path) -> None:
            path = folder / "inputs.parquet"
            path.write_bytes(change(path.read_bytes()))

        return both(table(good), make)

    good: dict[str, object] = {"id": ["r1", "r2"], "text": ["a b", "c d"], "topic": ["food", "food"]}

    def flipped(content: bytes) -> bytes:
        return content[:20] + bytes(byte ^ 0xFF for byte in content[20:60]) + content[60:]

    import datetime

    found: list[tuple[str, Make, str]] = [
        ("empty", changed(lambda _: b""), "damaged"),
        ("a text", changed(lambda _: b"id,text\n"), "damaged"),
        ("first bytes alone", changed(lambda content: content[:4]), "damaged"),
        ("cut in the middle", changed(lambda content: content[: len(content) // 2]), "damaged"),
        ("cut at the end", changed(lambda content: content[:-1]), "damaged"),
        ("footer overwritten", changed(lambda content: content[:-40] + b"\xff" * 32 + content[-8:]), "damaged"),
        ("a huge footer", changed(lambda content: content[:-8] + b"\xff\xff\xff\x7fPAR1"), "damaged"),
        ("pages overwritten", changed(flipped), "damaged"),
        ("encrypted", changed(lambda content: b"PARE" + content[4:-4] + b"PARE"), "damaged"),
        ("zeros", changed(lambda content: bytes(len(content))), "damaged"),
        ("no rows", table({"id": [], "text": [], "topic": []}), "no rows"),
        ("no columns that are wanted", table({"a": [1]}), "no such column"),
        ("a null text", table({**good, "text": ["a", None]}), "null"),
        ("bytes", table({**good, "more": [b"a", b"\xff"]}), "a value of type bytes has no JSON form"),
        ("NaN", table({**good, "more": [1.0, float("nan")]}), "JSON"),
        ("infinity", table({**good, "more": [1.0, float("inf")]}), "JSON"),
        ("a text that is no UTF-8", _bad_text, "utf-8|UTF-8|UTF8"),
        ("a duration", table({**good, "more": [datetime.timedelta(1)] * 2}), "has no JSON form"),
        (
            "a time in the year 33658",
            both(settings("inputs.jsonl", "inputs.parquet"), _far),
            "row 2: date value out of range",
        ),
        ("a column twice", _twice, "twice"),
        ("an id twice", table({**good, "id": ["r1", "r1"]}), "is also the id of"),
        ("a dictionary bomb", _bomb, "memory|large|MiB"),
    ]
    cases = [Case(name, "parquet", make, CHECK, 2, rf"inputs\.parquet.*({said})") for name, make, said in found]
    well = [
        ("dates", table({**good, "more": [datetime.date(2024, 1, 1)] * 2}), 2, 0),
        ("gzip inside", table(good, compression="gzip"), 2, 0),
        ("zstd inside", table(good, compression="zstd"), 2, 0),
        ("whole numbers as ids", table({**good, "id": [1, 2]}), 2, 0),
        ("bytes, dropped", table({**good, "more": [None, b"\xff"]}), 1, 1),
        ("a time in the year 33658, dropped", both(settings("inputs.jsonl", "inputs.parquet"), _far), 1, 1),
        ("NaN, dropped", table({**good, "more": [1.0, float("nan")]}), 1, 1),
        ("a null text, dropped", table({**good, "text": ["a", None]}), 1, 1),
        ("a value of a megabyte", table({**good, "text": ["a " * 500_000, "b"]}), 2, 0),
    ]
    for name, make, kept, dropped in well:
        allowed = both(settings("stages:\n", DROP), make)
        cases.append(Case(name, "parquet", allowed, INGEST, 0, "report: .*", ("ingest", kept, dropped)))
    return cases


def _far(folder: Path) -> None:
    """Microseconds as if they were milliseconds: Python's dates end with year 9999."""
    import pyarrow
    import pyarrow.parquet

    when = pyarrow.array([0, 10**18], pyarrow.timestamp("us"))
    columns = {"id": ["r1", "r2"], "text": ["a b", "c d"], "topic": ["food", "food"], "when": when}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "inputs.parquet")


def _bad_text(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.array([b"\xff\xfe", b"ok"]).view(pyarrow.string())
    pyarrow.parquet.write_table(
        pyarrow.table({"id": ["r1", "r2"], "text": text, "topic": ["food"] * 2}), folder / "inputs.parquet"
    )
    settings("inputs.jsonl", "inputs.parquet")(folder)


def _twice(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_arrays(
        [pyarrow.array(["r1"]), pyarrow.array(["a"]), pyarrow.array(["b"]), pyarrow.array(["food"])],
        names=["id", "text", "text", "topic"],
    )
    pyarrow.parquet.write_table(table, folder / "inputs.parquet")
    settings("inputs.jsonl", "inputs.parquet")(folder)


def _bomb(folder: Path) -> None:
    """A few kilobytes on disk, 4 GB once all rows of one batch are texts of their own."""
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 1000, pyarrow.int32()), pyarrow.array(["x" * (4 << 20)])
    )
    columns = {"id": [f"r{n}" for n in range(1000)], "text": text, "topic": ["food"] * 1000}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "inputs.parquet", compression="zstd")
    settings("inputs.jsonl", "inputs.parquet")(folder)


def recording_cases() -> list[Case]:
    """completions.jsonl: what the teacher replay reads."""

    def said(**columns: object) -> str:
        return json.dumps({"id": "r2", "completion": "It is a b c. So the answer is food.", **columns})

    found: list[tuple[str, str | bytes, str]] = [
        ("not JSON", "x", "each line must be one JSON object"),
        ("cut off", said()[:-3], "each line must be one JSON object"),
        ("a list", "[]", "each line must be one JSON object"),
        ("duplicate key", said()[:-1] + ', "completion": "b"}', "stands there twice"),
        ("lone surrogate", said()[:-1] + ', "a": "\\ud800"}', "not valid Unicode"),
        ("NaN", said()[:-1] + ', "a": NaN}', "NaN is no JSON number"),
        ("Latin-1", said().replace("food", "caf\xe9").encode("latin-1"), "utf-8|UTF-8"),
        ("10,000 deep", said()[:-1] + ', "a": ' + "[" * 10_000 + "]" * 10_000 + "}", "nested too deeply"),
        ("no id", '{"completion": "a"}', "id: expected text, found None"),
        ("a number as id", said(id=2), "id: expected text, found 2"),
        ("an id twice", said(id="r0"), "id: 'r0' stands in line 1 already"),
        ("no completion", '{"id": "r2"}', "completion: expected text or a list of texts, found None"),
        ("a number as completion", said(completion=1), "completion: expected text"),
        ("an object as completion", said(completion={"text": "a"}), "completion: expected text"),
        ("null in the list", said(completion=["a", None]), "completion: expected text"),
        ("lists in the list", said(completion=[["a"]]), "completion: expected text"),
        ("a finish reason that is a number", said(finish_reason=1), "finish_reason: expected text"),
        (
            "more finish reasons than completions",
            said(finish_reason=["stop", "stop"]),
            "finish_reason: has 2 values for 1 completions",
        ),
        ("tokens below 0", said(prompt_tokens=-1), "prompt_tokens: expected a number of tokens"),
        ("tokens that are true", said(prompt_tokens=True), "prompt_tokens: expected a number of tokens"),
        ("tokens with a fraction", said(prompt_tokens=1.5), "prompt_tokens: expected a number of tokens"),
        ("tokens as a text", said(completion_tokens="5"), "completion_tokens: expected a number of tokens"),
        ("tokens beyond 32 bits", said(completion_tokens=2**40), "completion_tokens: expected a number of tokens"),
        (
            "fewer token counts than completions",
            said(completion=["a", "b"], completion_tokens=[1]),
            "completion_tokens: has 1 values",
        ),
    ]
    cases = [
        Case(
            name, "recordings", line("completions.jsonl", content), PARSE, 2, rf"(.*/)?completions\.jsonl:3: .*({text})"
        )
        for name, content, text in found
    ]
    into = both(
        settings(
            "{backend: replay, completions: completions.jsonl}", "{backend: replay, name: old, about: {model: m}}"
        ),
    )
    asked = ("responses", "import", "completions.jsonl", "--teacher", "old")
    cases += [
        Case(
            f"{name}, imported",
            "recordings",
            both(into, line("completions.jsonl", content)),
            asked,
            2,
            rf"completions\.jsonl:3: .*({text})",
        )
        for name, content, text in found[::3]
    ]
    about = [
        ("about that is no JSON", "{a", "--about: .*not valid JSON"),
        ("about with NaN", '{"a": NaN}', "--about: NaN is no JSON number; not valid JSON"),
        ("about with a duplicate key", '{"a": 1, "a": 2}', "--about: key 'a' stands there twice"),
        (
            "about of another model",
            '{"model": "n"}',
            "stages.yaml: stages.sample.teacher: describes old in other words",
        ),
        ("about in no file", "gone.json", "gone.json: cannot be read"),
        ("about in a file that is a list", "list.json", "list.json: expected a JSON object"),
        ("about in a file that is no text", "bytes.json", "bytes.json: not UTF-8 text"),
        ("about in a pipe", "pipe.json", "pipe.json: .*not a regular file"),
    ]
    files = both(into, put("list.json", "[]"), put("bytes.json", b"\xff"), fifo("pipe.json"))
    cases += [Case(name, "recordings", files, (*asked, "--about", value), 2, text) for name, value, text in about]
    whole = [
        ("gone", removed("completions.jsonl"), PARSE, r".*completions\.jsonl.*(No such file|no such file)"),
        ("a pipe", fifo("completions.jsonl"), PARSE, r".*completions\.jsonl: .*not a regular file"),
        (
            "a pipe, checked",
            fifo("completions.jsonl"),
            CHECK,
            r"stages\.yaml:\d+: stages\.sample\.teacher\.completions: completions\.jsonl: not a regular file",
        ),
        (
            "gone, checked",
            removed("completions.jsonl"),
            CHECK,
            r"stages\.yaml:\d+: stages\.sample\.teacher\.completions: completions\.jsonl: no such file",
        ),
        ("a folder", directory("completions.jsonl"), PARSE, r".*completions\.jsonl: (no \.jsonl|.*directory)"),
        ("a link to itself", link("completions.jsonl", "completions.jsonl"), PARSE, r".*completions\.jsonl"),
        (
            "a pipe, imported",
            both(into, fifo("completions.jsonl")),
            asked,
            r".*completions\.jsonl: .*not a regular file",
        ),
        (
            "a teacher that is not there",
            put("note", ""),
            ("responses", "import", "completions.jsonl", "--teacher", "x"),
            r"stages\.yaml: stages.sample.teacher: has no x",
        ),
    ]
    cases += [Case(name, "recordings", make, what, 2, text) for name, make, what, text in whole]
    pattern = ("parse", 27, 2)
    cases += [
        Case("an empty file", "recordings", put("completions.jsonl", ""), PARSE, 0, "report: .*", ("parse", 0, 0)),
        Case(
            "a completion of 10 MB",
            "recordings",
            line("completions.jsonl", said(completion="word " * (2 << 20))),
            PARSE,
            0,
            "report: .*",
            pattern,
        ),
        Case(
            "an empty completion",
            "recordings",
            line("completions.jsonl", said(completion="")),
            PARSE,
            0,
            "report: .*",
            pattern,
        ),
        Case(
            "no completions in the list",
            "recordings",
            line("completions.jsonl", said(completion=[])),
            PARSE,
            0,
            "report: .*",
            ("parse", 27, 1),
        ),
        Case(
            "NUL and U+2028 in a completion",
            "recordings",
            line("completions.jsonl", said(completion="a\0\u2028b. So the answer is food.")),
            PARSE,
            0,
            "report: .*",
            ("parse", 28, 1),
        ),
        Case(
            "a row that nobody asks for",
            "recordings",
            line("completions.jsonl", said(id="nobody")),
            PARSE,
            0,
            "report: .*",
            ("parse", 27, 1),
        ),
        Case(
            "BOM at the start",
            "recordings",
            edit("completions.jsonl", b"", BOM),
            PARSE,
            0,
            "report: .*",
            ("parse", 28, 1),
        ),
        Case("CRLF", "recordings", line("completions.jsonl", said() + "\r"), PARSE, 0, "report: .*", ("parse", 28, 1)),
    ]
    return cases


EVIL = "(?P<rationale>(a+)+b) So the answer is (?P<label>.+)"


def pattern_cases() -> list[Case]:
    """Regular expressions of stages.yaml, those that backtrack for ever among them."""
    old = "(?P<rationale>.+?) So the answer is (?P<label>.+?)\\.'"
    trap = line("completions.jsonl", json.dumps({"id": "r2", "completion": "a" * 60 + "!"}))
    found = [
        ("not closed", "(?P<label>a", "no regular expression"),
        ("no group", "abc", "no named group"),
        ("an unknown group", "(?P<lable>a)", "unknown group 'lable'"),
        ("a group twice", "(?P<label>a)(?P<label>b)", "no regular expression"),
        ("nothing to repeat", "*(?P<label>a)", "no regular expression"),
        ("a repeat beyond any number", "(?P<label>a{99999999999})", "no regular expression"),
        ("nested 10,000 deep", "(?:" * 10_000 + "(?P<label>a)" + ")" * 10_000, "no regular expression|nested"),
        ("a look behind without an end", "(?<=a+)(?P<label>a)", "no regular expression"),
        ("a bad escape", "\\\\p(?P<label>a)", "."),
        ("no rationale", "(?P<label>a)", "has no group 'rationale'"),
    ]
    cases = [
        Case(
            name,
            "patterns",
            settings(old, f"{pattern}'"),
            CHECK,
            2,
            rf"stages\.yaml:\d+: stages.parse.pattern: .*({said})",
        )
        for name, pattern, said in found
        if said != "."
    ]
    evil = [
        ("nested repeats", EVIL),
        ("choices that overlap", "(?P<rationale>(a|aa)+b) So the answer is (?P<label>.+)"),
        ("three repeats in a row", "(?P<rationale>(?:a*)*(?:a*)*(?:a*)*b) (?P<label>.+)"),
        ("a reference back", "(?P<rationale>(a*)*\\2b) (?P<label>.+)"),
        ("spaces", "(?P<rationale>(?:[^b]+ ?)+b) (?P<label>.+)"),
    ]
    for name, pattern in evil:
        make = both(settings(old, f"{pattern}'"), trap)
        cases.append(
            Case(
                f"{name}, for ever", "patterns", make, PARSE, 2, r"stages\.parse\.pattern: response r.*takes more than"
            )
        )
    for where, text in (("block_list", "block_list"), ("allow_list", "allow_list")):
        long = line(
            "completions.jsonl", json.dumps({"id": "r2", "completion": "a" * 60 + "! x y z. So the answer is food."})
        )
        make = both(settings("- label_in_set", "- {" + text + ": {patterns: ['(a+)+b']}}"), long)
        cases.append(
            Case(
                f"{where}, for ever",
                "patterns",
                make,
                SHARD,
                2,
                rf"stages\.quality\.filters.*{where}.* takes more than",
            )
        )
    more = [
        ("a list that holds nothing", "- {block_list: {}}", "nothing is listed"),
        ("an empty phrase", "- {block_list: {phrases: ['']}}", "an empty phrase would stand everywhere"),
        ("a pattern of a list that is none", "- {block_list: {patterns: ['(']}}", "no regular expression"),
        ("a list in no file", "- {block_list: {file: gone.txt}}", "gone.txt"),
        ("a list in an empty file", "- {block_list: {file: empty.txt}}", "empty.txt: no phrase in this file"),
        ("a list in bytes", "- {block_list: {file: bytes.txt}}", "bytes.txt: not UTF-8"),
        ("a list in a pipe", "- {block_list: {file: pipe.txt}}", "pipe.txt: .*not a regular file"),
        ("a list in a folder", "- {block_list: {file: folder}}", "folder"),
    ]
    files = both(put("empty.txt", "\n# a\n"), put("bytes.txt", b"\xff"), fifo("pipe.txt"), directory("folder"))
    for name, new, said in more:
        cases.append(Case(name, "patterns", both(files, settings("- label_in_set", new)), SHARD, 2, f".*({said})"))
    return cases


def prompt_cases() -> list[Case]:
    """Templates: task.input, and prompt files."""
    place = r"stages\.yaml:\d+: task\.input|.*"
    inputs = [
        ("not closed", "{{ text", "not a valid Jinja template"),
        ("an unknown tag", "{% frobnicate %}", "not a valid Jinja template"),
        ("an unknown filter", "{{ text|frobnicate }}", "No filter named"),
        ("a column that is not there", "{{ txet }}", "txet: no such column.*did you mean 'text'"),
        ("a block not ended", "{% if text %}a", "not a valid Jinja template|Unexpected end"),
        ("divides by zero", "{{ 1 // 0 }}", "by zero"),
        ("reaches for Python", "{{ ''.__class__.__mro__ }}", "unsafe|__class__"),
        ("reaches by another way", "{{ ''|attr('__class__') }}", "unsafe|__class__|undefined"),
        ("an attribute of a function", "{{ text.format.__globals__ }}", "unsafe|__globals__"),
        ("format with an attribute", "{{ '{0.__class__}'.format(text) }}", "unsafe|__class__"),
        ("randomness", "{{ [1, 2]|random }}", "No filter named 'random'"),
        ("a long range", "{% for n in range(10**9) %}a{% endfor %}", "[Rr]ange too big"),
        (
            "loops in loops",
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "takes more than",
        ),
        (
            "loops in loops that say something",
            "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxx{% endfor %}{% endfor %}",
            "takes more than|longer than",
        ),
        ("a text that is too long by '*'", "{{ 'a' * 10**10 }}", "too long|too large|memory"),
        ("a list that is too long by '*'", "{{ ([0] * 10**10)|length }}", "too long|too large|memory"),
        ("a power without an end", "{{ 10 ** (10 ** 10) }}", "too large"),
        ("a power of a power", "{{ (9 ** 99999) ** 99999 }}", "too large"),
        ("a format of a gigabyte", "{{ '%9999999999d' % 3 }}", "too long|too large|memory|width"),
        ("a width of a gigabyte", "{{ text|center(10**10) }}", "memory|too l"),
        ("recursion", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recurses too deeply"),
        ("includes a file", "{% include 'prompt.jinja' %}", "."),
        ("imports itself", "{% import 'x' as y %}", "."),
        (
            "nested 2,000 deep",
            "{{ " + "(" * 2000 + "text" + ")" * 2000 + " }}",
            "nested too deeply|recurses too deeply",
        ),
        ("blocks nested 200 deep", "{% if text %}" * 200 + "x" + "{% endif %}" * 200, "nested|valid|too many"),
        (
            "doubles itself",
            "{% set ns = namespace(x='aaaaaaaaaa') %}{% for n in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}",
            "memory|takes more|too long",
        ),
        ("empty", "{# nothing #}", "the input is empty"),
    ]
    cases = []
    for name, template, said in inputs:
        make = settings('input: "{{ text }}"', "input: " + json.dumps(template))
        cases.append(Case(f"input: {name}", "prompts", make, CHECK, 2, f"(?s)({place}).*({said})", megabytes=2500))

    def of(content: str | bytes) -> Make:
        return both(
            settings("  inputs: inputs.jsonl\n", "  inputs: inputs.jsonl\n  prompt: prompt.jinja\n"),
            put("prompt.jinja", content),
        )

    start = r"(stages\.yaml:\d+: .*)?prompt"
    user = "{% block user %}"
    end = "{% endblock %}"
    files: list[tuple[str, str | bytes, str]] = [
        ("empty", "", "has no block 'user'"),
        ("text alone", "Label it: {{ text }}", "outside the blocks would never be sent"),
        ("not UTF-8", b"{% block user %}\xff{% endblock %}", "not UTF-8 text"),
        ("UTF-16", f"{user}{end}".encode("utf-16"), "not UTF-8 text"),
        ("a block not ended", user, "not a valid Jinja template|Unexpected end"),
        ("a block twice", f"{user}a{end}{user}b{end}", "defined twice"),
        ("an unknown block", f"{user}a{end}{{% block usr %}}{end}", "would never be sent; did you mean 'user'"),
        ("a block in a block", f"{user}{{% block system %}}{end}{end}", "stands inside another block"),
        ("extends", f"{{% extends 'a' %}}{user}{end}", "'extends' is not supported"),
        ("includes what is not there", f"{user}{{% include 'gone.jinja' %}}{end}", "no such template"),
        ("includes what lies outside", f"{user}{{% include '../stages.yaml' %}}{end}", "no such template|lies outside"),
        ("includes an absolute path", f"{user}{{% include '/etc/passwd' %}}{end}", "no such template|lies outside"),
        ("includes a name that is worked out", f"{user}{{% include text %}}{end}", "must be written out in quotes"),
        ("includes a link to the outside", f"{user}{{% include 'out.jinja' %}}{end}", "lies outside"),
        ("includes a pipe", f"{user}{{% include 'pipe.jinja' %}}{end}", "no such template"),
        ("includes itself", f"{user}{{% include 'prompt.jinja' %}}{end}", "includes itself"),
        ("a circle of two", f"{user}{{% include 'circle.jinja' %}}{end}", "includes itself"),
        (
            "examples with a gap",
            f"{user}a{end}{{% block user_2 %}}a{end}{{% block assistant_2 %}}b{end}",
            "examples are pairs",
        ),
        ("a column that is not there", f"{user}{{{{ txet }}}}{end}", "txet: no such column"),
        (
            "loops in loops",
            f"{user}{{% for a in range(99999) %}}{{% for b in range(99999) %}}{{% endfor %}}{{% endfor %}}{end}",
            "takes more than",
        ),
        ("a power without an end", f"{user}{{{{ 10 ** (10 ** 10) }}}}{end}", "too large"),
        ("shows the gold", f"{user}{{{{ topic }}}}{end}", "shows the column 'topic'"),
        ("100,000 brackets", f"{user}{{{{ " + "[" * 100_000 + f" }}}}{end}", "nested too deeply"),
    ]
    server = settings(
        "{backend: replay, completions: completions.jsonl}",
        "{backend: server, base_url: 'http://127.0.0.1:9', model: m}",
    )
    beside = both(
        link("out.jinja", "../../../../../../etc/passwd"),
        fifo("pipe.jinja"),
        put("circle.jinja", "{% include 'prompt.jinja' %}"),
    )
    for name, content, said in files:
        cases.append(
            Case(f"file: {name}", "prompts", both(server, beside, of(content)), CHECK, 2, rf"{start}.*({said})")
        )
    whole = [
        ("gone", removed("prompt.jinja"), "no such file"),
        ("a folder", directory("prompt.jinja"), "no such file|not a regular file"),
        ("a pipe", fifo("prompt.jinja"), "no such file|not a regular file"),
        ("a link to itself", link("prompt.jinja", "prompt.jinja"), "no such file"),
    ]
    for name, make, said in whole:
        cases.append(Case(f"file: {name}", "prompts", both(server, of("x"), make), CHECK, 2, rf"{start}.*({said})"))
    return cases


def eval_cases() -> list[Case]:
    """Rows that models are measured on: these never become drops, for a set would protect less than it says."""

    def told(**columns: object) -> str:
        return json.dumps({"id": "e1", "text": "a b c d e", "topic": "food", **columns})

    found: list[tuple[str, str | bytes, str]] = [
        ("not JSON", "x", "one JSON object"),
        ("a list", "[]", "one JSON object"),
        ("duplicate key", told()[:-1] + ', "text": "b"}', "stands there twice"),
        ("NaN", told()[:-1] + ', "a": NaN}', "NaN is no JSON number"),
        ("lone surrogate", told(a="\ud800"), "not valid Unicode"),
        ("not UTF-8", b'{"id": "\xff"}', "utf-8|UTF-8"),
        ("10,000 deep", '{"a": ' * 10_000, "nested too deeply"),
        ("an id twice", told(id="t0"), "is also the id of"),
        ("an id with a path", told(id="a/b"), "cannot be an id"),
        ("no text", '{"id": "e1", "topic": "food"}', "text: no such column"),
        ("an empty text", told(text=" "), "the input is empty"),
        ("no gold", '{"id": "e1", "text": "a"}', "topic: no such column"),
        ("a gold outside the set", told(topic="travel"), "'travel' is none of task.labels"),
        ("a gold that is an object", told(topic={}), "topic: expected text or a number"),
    ]
    cases = [
        Case(name, "eval sets", line("test.jsonl", content), CHECK, 2, rf"test\.jsonl:? ?(row )?3: .*({said})")
        for name, content, said in found
    ]
    allowed = settings("stages:\n", DROP)
    cases += [
        Case(
            f"{name}, drops allowed",
            "eval sets",
            both(allowed, line("test.jsonl", content)),
            CHECK,
            2,
            rf"test\.jsonl:? ?(row )?3: .*({said})",
        )
        for name, content, said in found[:3]
    ]
    whole = [
        ("empty", put("test.jsonl", ""), r"test\.jsonl: no rows; eval set 'test' would protect nothing"),
        ("gone", removed("test.jsonl"), r"stages\.yaml:\d+: eval_sets.test.path: test\.jsonl: no such file"),
        ("a pipe", fifo("test.jsonl"), r"stages\.yaml:\d+: eval_sets.test.path: test\.jsonl: not a regular file"),
        (
            "a column that is not there",
            settings("{path: test.jsonl}", "{path: test.jsonl, gold: label}"),
            r"test\.jsonl:1: label: no such column",
        ),
        (
            "an input that is no template",
            settings("{path: test.jsonl}", "{path: test.jsonl, input: '{{'}"),
            r".*not a valid Jinja template",
        ),
        (
            "a path with NUL",
            settings("{path: test.jsonl}", '{path: "a\\0.jsonl"}'),
            r"stages\.yaml:\d+: .*holds a NUL",
        ),
        (
            "an unknown setting",
            settings("{path: test.jsonl}", "{path: test.jsonl, golf: topic}"),
            r"stages\.yaml:\d+: eval_sets.test.golf: unknown setting; did you mean 'gold'",
        ),
        ("no path", settings("{path: test.jsonl}", "{}"), r"stages\.yaml:\d+: eval_sets.test.path: field required"),
    ]
    return cases + [Case(name, "eval sets", make, CHECK, 2, said) for name, make, said in whole]


def finished_cases() -> list[Case]:
    """What lies in a finished run: manifests, rows, answers, shards, revocations, marks. ``make`` gets the folder after a run."""
    manifest = f"{RUN}/parse/*/manifest.json"
    audit = ("audit",)
    trouble: list[tuple[str, Make]] = [
        ("empty", put_at(manifest, b"")),
        ("not JSON", put_at(manifest, b"{")),
        ("a list", put_at(manifest, b"[]")),
        ("null", put_at(manifest, b"null")),
        ("binary", put_at(manifest, bytes(range(256)))),
        ("BOM", edit(manifest, b"", BOM)),
        ("10,000 deep", put_at(manifest, b"[" * 10_000)),
        ("NaN", edit(manifest, b'"counts":{', b'"counts":{"a":NaN,')),
        ("a duplicate key", edit(manifest, b'"stage":', b'"stage":"parse","stage":')),
        ("an unknown field", edit(manifest, b'"stage":', b'"more":1,"stage":')),
        ("a field missing", edit(manifest, b'"stage":"parse",', b"")),
        ("a text where a number is wanted", edit(manifest, b'"dropped":1', b'"dropped":"1"')),
        ("a number of 5,000 digits", edit(manifest, b'"dropped":1', b'"dropped":' + b"1" * 5000)),
        ("a number below 0", edit(manifest, b'"dropped":1', b'"dropped":-1')),
        ("a path to the outside", edit(manifest, b'"path":"part-00000.jsonl"', b'"path":"../../../stages.yaml"')),
        ("an absolute path", edit(manifest, b'"path":"part-00000.jsonl"', b'"path":"/etc/passwd"')),
        ("another stage", edit(manifest, b'"stage":"parse"', b'"stage":"shard"')),
        ("an earlier version", edit(manifest, b'"schema_version":', b'"schema_version":1,"was":')),
        ("a lone surrogate", edit(manifest, b'"stage":"parse"', b'"stage":"\\ud800"')),
        ("spaces", edit(manifest, b'"stage":', b'"stage": ')),
        ("CRLF", lambda folder: _append(folder, manifest, b"\r\n")),
        ("a pipe", lambda folder: fifo(_named(folder, manifest))(folder)),
        ("a folder", lambda folder: directory(_named(folder, manifest))(folder)),
        ("a link to itself", lambda folder: link(_named(folder, manifest), "manifest.json")(folder)),
        ("a device", lambda folder: link(_named(folder, manifest), "/dev/zero")(folder)),
    ]
    cases = [Case(f"audit: {name}", "manifests", make, audit, 1, "(?s).*parse.*") for name, make in trouble]
    cases += [
        Case(f"show: {name}", "manifests", make, ("show", "parse"), 1, r"runs/small/parse/.*manifest\.json.*")
        for name, make in trouble[:12:3]
    ]
    current = f"{RUN}/parse/current"
    pointers: list[tuple[str, bytes]] = [
        ("empty", b""), ("binary", b"\xff\xfe"), ("a path", b"../shard"), ("dots", b".."), ("an absolute path", b"/etc"),
        ("NUL", b"a\0b"), ("10 MB", b"a" * (10 << 20)), ("another key", b"0" * 32), ("two lines", b"a\nb\n"),
    ]  # fmt: skip
    cases += [
        Case(
            f"pointer: {name}",
            "manifests",
            put(current, content),
            ("show", "parse"),
            2,
            "parse: no result yet|.*current.*",
        )
        for name, content in pointers
    ]
    rows = f"{RUN}/parse/*/part-00000.jsonl"
    bad_rows: list[tuple[str, str | bytes]] = [
        ("not JSON", "x"), ("empty", ""), ("a list", "[]"), ("wrong types", '{"id": 1}'), ("10,000 deep", "[" * 10_000),
        ("not UTF-8", b'{"id": "\xff"}'), ("NUL", b"\0\0"), ("lone surrogate", '{"id": "\\ud800"}'),
    ]  # fmt: skip
    cases += [
        Case(f"rows: {name}", "manifests", line(rows, content), audit, 1, "(?s).*part-00000.jsonl:3.*")
        for name, content in bad_rows
    ]
    cases += [
        Case(
            f"rows: {name}, shown",
            "manifests",
            line(rows, content),
            ("show", "parse"),
            1,
            r"runs/small/parse/.*part-00000\.jsonl:3: .*",
        )
        for name, content in bad_rows[:1] + bad_rows[4:]
    ]
    cases += [
        Case(
            f"rows: {name}, read by the next stage",
            "manifests",
            line(rows, content),
            ("run", "quality", "--set", "quality.filters=[{min_words: 4}]"),
            1,
            r"runs/small/parse/.*part-00000\.jsonl:3: .*",
        )
        for name, content in bad_rows[:1] + bad_rows[3:4]
    ]

    segment = f"{RUN}/responses/segment-00000.jsonl"
    store: list[tuple[str, Make]] = [
        ("not JSON", line(segment, "x")),
        ("an empty line", line(segment, "")),
        ("a list", line(segment, "[]")),
        ("one byte changed", edit(segment, b"gardening", b"gardenina")),
        ("a line twice without its end", line(segment, '{"key":"')),
        ("binary", line(segment, bytes(range(11, 256)))),
        ("NUL", line(segment, b"\0" * 100)),
        ("10,000 deep", line(segment, "[" * 10_000)),
        ("CRLF", lambda folder: _crlf(folder, segment)),
        ("BOM", edit(segment, b"", BOM)),
        ("10 MB without a newline in the middle", line(segment, b"x" * (10 << 20))),
        (
            "a record that fits its check and is none",
            lambda folder: _forged(
                folder,
                segment,
                b'{"key":"%s","family":"%s","max_tokens":1,"finish_reason":"stop","more":1}' % (b"0" * 32, b"0" * 32),
            ),
        ),
        (
            "a record that fits its check with NaN",
            lambda folder: _forged(
                folder,
                segment,
                b'{"key":"%s","family":"%s","max_tokens":1,"finish_reason":"stop","a":NaN}' % (b"0" * 32, b"0" * 32),
            ),
        ),
        (
            "a record with a huge max_tokens",
            lambda folder: _forged(
                folder,
                segment,
                b'{"key":"%s","family":"%s","max_tokens":99999999999,"finish_reason":"stop"}' % (b"0" * 32, b"0" * 32),
            ),
        ),
    ]
    cases += [
        Case(
            f"verify: {name}",
            "responses",
            make,
            ("responses", "verify"),
            1,
            r"(?s)runs/small/responses/segment-00000\.jsonl:\d+: .*runs/small/responses: \d+ problems",
        )
        for name, make in store
    ]
    cases += [
        Case(
            f"count: {name}",
            "responses",
            make,
            ("responses", "count"),
            1,
            r"runs/small/responses/segment-00000\.jsonl:\d+: .*",
        )
        for name, make in store[:1] + store[11:13]
    ]
    cases += [
        Case(f"audit: {name}", "responses", make, audit, 1, r"(?s).*segment-00000\.jsonl.*")
        for name, make in store[3:4] + store[11:12]
    ]
    again = ("run", "--set", "sample.seed=7", "--until", "sample")
    cases += [
        Case(f"writer: {name}", "responses", make, again, 1, r"runs/small/responses/segment-00000\.jsonl:\d+: .*")
        for name, make in store[:4]
    ]
    live = f"{RUN}/responses/segments.json"
    for name, content in (
        ("not JSON", "{"),
        ("a list", "[]"),
        ("empty", ""),
        ("deep", "[" * 10_000),
        ("wrong types", '{"from": "x"}'),
        ("binary", b"\xff"),
    ):
        cases.append(
            Case(
                f"segments.json: {name}",
                "responses",
                put(live, content),
                ("responses", "count"),
                1,
                r"runs/small/responses/segments\.json.*",
            )
        )
    cases += [
        Case(
            "segments.json: a pipe",
            "responses",
            fifo(live),
            ("responses", "count"),
            1,
            r"runs/small/responses/segments\.json.*",
        ),
        Case(
            "a segment that is a pipe",
            "responses",
            fifo(segment),
            ("responses", "count"),
            1,
            r".*segment-00000\.jsonl.*",
        ),
        Case(
            "a segment that is a folder",
            "responses",
            directory(segment),
            ("responses", "count"),
            1,
            r".*segment-00000\.jsonl.*",
        ),
        Case("the lock is a folder", "responses", directory(f"{RUN}/responses/lock"), again, 1, r".*responses.*"),
    ]
    revoked = f"{RUN}/revoked.jsonl"
    for name, content in (
        ("not JSON", "x\n"), ("a list", "[]\n"), ("wrong types", '{"kind": 1}\n'), ("without its newline", "{}"), ("deep", "[" * 10_000 + "\n"),  # noqa: E501
        ("binary", b"\xff\n"), ("a line of 20 MB", b"x" * (20 << 20)), ("NUL", b"\0\n"), ("a duplicate key", '{"kind": "row", "kind": "row"}\n'),  # noqa: E501
    ):  # fmt: skip
        cases.append(
            Case(
                f"revoked.jsonl: {name}",
                "manifests",
                put(revoked, content),
                CHECK,
                2,
                r"runs/small/revoked\.jsonl:1: .*",
            )
        )
    cases.append(
        Case(
            "revoked.jsonl: a pipe",
            "manifests",
            fifo(revoked),
            CHECK,
            2,
            r"runs/small/revoked\.jsonl: .*not a regular file.*",
        )
    )

    shards = f"{RUN}/shard/*/train-00000.jsonl"
    learn = (
        "train",
        "--shards",
        "shards",
        "--student",
        "gone",
        "--out",
        "out",
        "--accept-terms",
        "a test",
        "--dry-run",
    )
    bad: list[tuple[str, str | bytes]] = [
        ("not JSON", "x"), ("a list", "[]"), ("no fields", "{}"), ("wrong types", '{"prompt": 1}'), ("an unknown task", "TASK"),
        ("duplicate key", '{"id": "a", "id": "b"}'), ("NaN", '{"a": NaN}'), ("lone surrogate", '{"a": "\\ud800"}'),
        ("not UTF-8", b'{"a": "\xff"}'), ("10,000 deep", '{"a": ' * 10_000), ("NUL", b"\0\0\0"), ("null", "null"),
        ("BOM inside", BOM + b"{}"), ("a number of 5,000 digits", '{"a": ' + "1" * 5000 + "}"),
    ]  # fmt: skip
    for name, content in bad:

        def make(folder: Path, content: str | bytes = content) -> None:
            _shards(folder, shards)
            if content == "TASK":
                edit("shards/train-00000.jsonl", b'"task":"label"', b'"task":"poem"')(folder)
            else:
                line("shards/train-00000.jsonl", content)(folder)

        cases.append(Case(name, "shards", make, learn, 2, r"shards/train-00000\.jsonl:\d+: .*"))
    whole: list[tuple[str, Make, str]] = [
        ("no folder", put("note", ""), "shards: no train-.*here"),
        ("an empty folder", directory("shards"), "shards: no train-.*here"),
        ("a file in place of the folder", put("shards", "x"), "shards: no train-.*here"),
        (
            "a pipe",
            both(directory("shards"), fifo("shards/train-00000.jsonl")),
            r"shards/train-00000\.jsonl: .*not a regular file",
        ),
        (
            "a folder in place of a file",
            both(directory("shards"), directory("shards/train-00000.jsonl")),
            r"shards/train-00000\.jsonl: .*(directory|regular)",
        ),
        (
            "a link to itself",
            both(directory("shards"), link("shards/train-00000.jsonl", "train-00000.jsonl")),
            r"shards/train-00000\.jsonl: .*",
        ),
    ]
    cases += [Case(name, "shards", make, learn, 2, said) for name, make, said in whole]
    for name, content in (
        ("empty", ""),
        ("not JSON", "{"),
        ("deep", "[" * 10_000),
        ("a list", "[]"),
        ("another version", '{"schema_version": 1}'),
    ):

        def with_manifest(folder: Path, content: str = content) -> None:
            _shards(folder, shards)
            put("shards/manifest.json", content)(folder)

        cases.append(Case(f"manifest: {name}", "shards", with_manifest, learn, 1, r"shards/manifest\.json: .*"))
    return cases


def put_at(pattern: str, content: bytes) -> Make:
    """Another content of the file that fits the pattern."""
    return lambda folder: put(_named(folder, pattern), content)(folder)


def _named(folder: Path, pattern: str) -> str:
    return str(next(iter(sorted(folder.glob(pattern)))).relative_to(folder))


def _append(folder: Path, pattern: str, content: bytes) -> None:
    with (folder / _named(folder, pattern)).open("ab") as file:
        file.write(content)


def _crlf(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def _forged(folder: Path, name: str, body: bytes) -> None:
    from pipeline.files import line_digest

    line(name, body[:-1] + b',"check":"' + line_digest(body).encode() + b'"}')(folder)


def _shards(folder: Path, pattern: str) -> None:
    import shutil

    shutil.copytree((folder / _named(folder, pattern)).parent, folder / "shards")


FINISHED = ("manifests", "responses", "shards")


def all_cases() -> list[Case]:
    """Every case."""
    found = [
        *settings_cases(), *override_cases(), *prompt_cases(), *jsonl_cases(), *csv_cases(), *parquet_cases(),
        *recording_cases(), *pattern_cases(), *eval_cases(), *finished_cases(),
    ]  # fmt: skip
    names = [(case.kind, case.name) for case in found]
    assert len(set(names)) == len(names), sorted({name for name in names if names.count(name) > 1})
    return found
