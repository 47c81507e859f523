"""The report: its figures are the manifests', nothing in it is fetched or run, and no text of a run can break out of it."""

import re
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markupsafe import Markup
from playwright.sync_api import Browser
from typer.testing import CliRunner

from pipeline import outputs
from pipeline.cli import COMMANDS
from pipeline.commands import app
from pipeline.files import InputError, RunError, canonical_json, plain
from pipeline.metrics import Bin, Calibration, Comparison
from pipeline.records import Drop, Example, Prompt
from pipeline.report import FILES, audited, build, charts, tables, told, view, written
from pipeline.report.beside import difference, side_by_side
from pipeline.report.charts import funnel_bar, interval_bar, line_chart, reliability, sweep_chart, ticks
from pipeline.report.drawn import drawn
from pipeline.report.markdown import inert
from pipeline.report.marks import pair
from pipeline.report.shape import Audit, Chart, Curve, Line, Report, Spot
from pipeline.report.tables import shift_tables
from pipeline.report.view import funnel, read_curves, thinned
from pipeline.report.written import shown
from pipeline.shift import Spread, Truth, change
from pipeline.shift import measured as counted
from pipeline.stages import STAGES
from pipeline.usage import Facts, Figures
from tests.browser import DESKTOP, PHONE, chromium, faults, opened, too_wide
from tests.conftest import write_project
from tests.fabricated import HOSTILE, LABELS, TEXTS, costs, curves, fabricate, finish, measured, verdicts
from tests.rows import example

RUNS = "window.owned=1;alert(1)"
PAYLOADS = (
    f"<script>{RUNS}</script>",
    f"<img src=x onerror={RUNS}>",
    f"<svg onload={RUNS}>",
    f"<svg><script>{RUNS}</script></svg>",
    f'"><script>{RUNS}</script>',
    f"' onmouseover='{RUNS}' x='",
    f"</style><script>{RUNS}</script>",
    f"</title><script>{RUNS}</script>",
    f"</textarea></pre></code><script>{RUNS}</script>",
    f"--><script>{RUNS}</script><!--",
    f"]]><script>{RUNS}</script>",
    f"<iframe srcdoc='<script>{RUNS}</script>'></iframe>",
    "<iframe src=https://evil.example/></iframe>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<style>@import 'https://evil.example/x.css'; * { display: none }</style>",
    "<base href=https://evil.example/>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<form action=https://evil.example/><input autofocus name=x><button>send</button></form>",
    f"<a href=javascript:{RUNS}>here</a>",
    f"<details open ontoggle={RUNS}>",
    f"<math><mtext></mtext><script>{RUNS}</script></math>",
    f"&lt;script&gt;{RUNS}&lt;/script&gt; &#60;b&#62;",
    "{{ 7*7 }} {% for x in y %} {# z #} ${7*7}",
    f"[a link](javascript:{RUNS}) [another](https://evil.example/ 'title')",
    "![an image](https://evil.example/x.png)",
    "[a reference][1]\n\n[1]: https://evil.example/",
    "<https://evil.example/> https://evil.example/ www.evil.example evil.example",
    "<someone@evil.example> someone@evil.example @someone mailto:someone@evil.example",
    "\n# A heading\n\nA heading\n===\n\n## Another",
    "- a list\n  - in it\n1. number\n> quote\n\n---\n***",
    "`` ` `code` ``` ```` ~~~ fence\n```\nfence\n```",
    "| a | b |\n|---|---|\n| c \\| d | e \\\\| f |",
    "**bold** _it_ __strong__ ~~gone~~ :smile: $x^2$ $$y$$ [^1] ==mark== a_b_c",
    f"\\<script>{RUNS}</script> \\[a](b) \\` \\",
    "\x1b[2J\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]8;;https://evil.example/\x1b\\link\x1b]8;;\x1b\\",
    "\x9b2J\r overwritten \x08\x08\x08 \x00 \x7f \x0b \x0c",
    "\u202egnissecorp \u2066 \u2067 \u2069 \u200f \u200b \ufeff \U000e0041 \u2028 \u2029",
    "\ud800 alone",
    "[1.5, 2](x) [1]: y [2][3] a < 3> 5 >= 4 <5>",
    "a" * 3000,
    "",
    "   ",
)
"""What a run's texts may hold to reach a page, a Markdown renderer, a template or a terminal."""
SERIALISED = tuple(payload for payload in PAYLOADS if "\ud800" not in payload)  # what can stand in a row at all


class Page(HTMLParser):
    """Elements with their attributes, and the text; fails where an element is closed that was not open."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr", "rect", "line", "path", "circle", "polyline"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def squeezed(text: str) -> str:
    return " ".join(text.split())


def of_payloads() -> Callable[[str], str]:
    """Puts one payload after the other behind every name."""
    found: dict[str, str] = {}
    payloads = cycle(SERIALISED)
    return lambda name: found.setdefault(name, f"{name} {next(payloads)}")


def hostile(run: Path) -> Path:
    """A run with the payloads in its inputs, labels, rationales, names, reasons, slices, settings, sentences."""
    foreign = of_payloads()
    labels = [foreign(label) for label in LABELS]
    named = dict(zip(LABELS, labels, strict=True))
    texts = [(foreign(text), named[label], foreign(why)) for text, label, why in TEXTS]
    return fabricate(run, texts, foreign=foreign, labels=labels)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages' folders of a tame and of a hostile run, each beside another run, with gates and what an audit said."""
    place = tmp_path_factory.mktemp("runs")
    found = {}
    for name, make in (("tame", fabricate), ("hostile", hostile)):
        foreign = of_payloads() if name == "hostile" else str
        audit = Audit(
            whole=False, findings=12, shown=[foreign("a/b:1: changed")], not_looked_at=[foreign("c")], files=2, rows=3,
            responses=4, bytes=5, signature=foreign("not signed"),
        )  # fmt: skip
        run, other = make(place / name), make(place / f"{name}-other")
        title = "topics" if name == "tame" else " ".join(SERIALISED)
        build(run, title, compare=[other], gates=verdicts(foreign), audit=audit)
        found[name] = run / "report"
    return found


def test_models_stand_with_accuracy_and_interval(tmp_path: Path) -> None:
    page = squeezed(read(build(fabricate(tmp_path / "topics"))).text)
    for name, figures in measured().eval_sets["test"].models.items():
        low, high = figures.accuracy_interval
        assert f"{name} {figures.accuracy:.1%} {low:.1%} to {high:.1%}" in page
    assert "The student gives the right answer to 74.0% of the 150 rows of test" in page
    for comparison in measured().eval_sets["test"].comparisons:
        assert comparison.sentence in page
    assert "both right on 102 rows, student alone on 9, teacher alone on 22, neither on 17" in page


def test_the_headline_says_what_was_distilled_and_what_it_saves(tmp_path: Path) -> None:
    headline = view.read(fabricate(tmp_path / "topics")).headline
    assert headline.made == (
        "SmolLM2-135M-Instruct, cut to 8 layers, with 57.0M weights, learned from 2 examples that SmolLM2-135M-Instruct answered."
    )
    assert [gain.what for gain in headline.gains] == ["smaller", "faster", "cheaper"]
    assert [gain.times for gain in headline.gains] == pytest.approx([134_515_008 / 57_000_000, 41.5 / 3.1, 30.0])
    page = squeezed(read(build(tmp_path / "topics")).text)
    assert "2.4 times smaller 57.0M weights (114 MB on disk), where the teacher has 134.5M." in page
    assert "13 times faster 41.5 rows a second (cpu), the teacher 3.1." in page


def test_without_measurements_nothing_is_said_of_speed(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics")
    folder = outputs.current(run, "evaluate")
    assert folder is not None
    (folder / "run-speed.json").write_bytes(b'{"device": "cpu", "models": {"student": {"examples_per_second": 3}}}')
    found = view.read(run)
    assert found.costs is None
    assert [gain.what for gain in found.headline.gains] == ["smaller"]


def test_figures_of_an_earlier_version_are_not_shown(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics", evaluated=False)
    finish(run, "evaluate", [], parent="train", extra={"metrics.json": b"{}"}, version=1)
    found = view.read(run)
    assert (found.metrics, found.earlier_metrics) == (None, True)
    for name in FILES:
        assert "earlier version" in told(found, name) or name == "json"


def test_figures_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics", evaluated=False)
    finish(run, "evaluate", [], parent="train", extra={"metrics.json": b"{}"})
    with pytest.raises(RunError, match=r"metrics\.json: not Metrics"):
        build(run)


def test_all_parts_of_a_run_stand_on_the_page(runs: dict[str, Path]) -> None:
    page = squeezed(read(runs["tame"] / "index.html").text)
    for text in (
        "1 of 2 gates failed", "audit: 12 findings", "ece on test <= 0.05 not known failed",  # verdicts
        "student on test 74.0% 66.4% to 80.4%; 150 rows 74.0% 66.4% to 80.4%; 150 rows; +0.0 points (−9.9 to +9.9)",  # other run
        "by source student, 0 to 100% teacher, 0 to 100% news 80.0% 67.0% to 88.8%; 40 of 50",  # slices
        "student its own probabilities of the labels 150 0.083 0.412 1.70 from 25 validation rows 0.031 0.388",  # calibration
        ".. the one that the model answers 36 of 40 (90.0%) 36 of 40 (90.0%)",  # rationales
        "student: food not the true label A goal decides a match.", "cut off at its longest", "asked again behind it: travel",
        "the judge gives it 4 of 5", "student 41.5 32 at once 31 ms 52 ms 61.1 ms 57.0M 114 MB 812 MB 0.004",  # costs
        "base 22 of 40 (55.0%) 3 of 30 (10.0%)", "The student refuses 9 of 40 harmful requests",  # safety
        "The votes on 4 of 5 rows are unanimous.", "travel SmolLM2-135M-Instruct",  # votes
        "student 73.6% 65.7% to 80.2%; 103 of 140 80.0% 49.0% to 94.3%; 8 of 10",  # contamination
        "fractions on test, 12 trainings", "Whiskers: 95% t interval over training seeds",  # sweeps
        "sports taken for food 9", "a/b:1: changed and 11 more", "every training row back to a stored response",
    ):  # fmt: skip
        assert text in page, text


def test_words_that_an_eval_row_shares_are_marked(runs: dict[str, Path]) -> None:
    source = (runs["tame"] / "index.html").read_text()
    assert f"<mark>{TEXTS[3][0]}</mark>" in source
    assert f"Eval row: <mark>{TEXTS[3][0]}</mark>" in source


def test_near_duplicates_and_leaks_stand_beside_what_they_repeat(tmp_path: Path) -> None:
    page = squeezed(read(build(fabricate(tmp_path / "topics"))).text)
    assert f"{TEXTS[4][0]} the row that was kept for it {TEXTS[0][0]}" in page
    assert f"the eval row Eval row: {TEXTS[3][0]}" in page
    assert "overlap bring a salad on saturday bea has gone" in page
    assert "I do not know." in page


def test_a_leak_in_a_rationale_stands_beside_the_rationale(tmp_path: Path) -> None:
    evidence = {
        "where": "rationale", "text": "It says: a tram far from home", "eval_text": "A tram far from home",
        "overlap": "a tram far from home", "eval_overlap": "A tram far from home", "eval_set": "test",
    }  # fmt: skip
    (row,) = [view.shown_drop(drop, "The input") for drop in [Drop(id="r1", reason="contaminated", evidence=evidence)]]
    assert row.text == "The input"
    assert row.pair is not None
    assert [(piece.text, piece.shared) for piece in row.pair.own] == [
        ("It says: ", False),
        ("a tram far from home", True),
    ]
    assert [(piece.text, piece.shared) for piece in row.pair.other] == [("A tram far from home", True)]
    assert "text" not in row.evidence


def test_each_stage_starts_where_its_parent_ended(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics")
    manifests = {name: outputs.read_manifest(folder) for name in STAGES if (folder := outputs.current(run, name))}
    bars = {bar.stage: bar for bar in funnel(manifests)}
    assert bars["ingest"].start == 1.0
    assert bars["ingest"].end == pytest.approx(6 / 7)
    assert bars["quality"].end == pytest.approx(6 / 7 * 10 / 11 * 2 / 5)
    assert bars["shard"].end == bars["train"].end == bars["quality"].end  # two rows an example make the bar no wider
    for before, after in (("ingest", "sample"), ("parse", "dedup"), ("quality", "shard")):
        assert bars[after].start == bars[before].end


def test_votes_are_counted_over_all_rows_and_shown_where_they_differ(tmp_path: Path) -> None:
    votes = view.read(fabricate(tmp_path / "topics")).votes
    assert votes is not None
    assert (votes.rows, votes.unanimous) == (5, 4)
    assert [level.rows for level in votes.agreement] == [4, 0, 0, 1, 0]
    assert [(row.input, [ballot.label for ballot in row.votes]) for row in votes.split] == [
        (TEXTS[1][0], ["sports", "travel"])
    ]
    assert [row.soft_labels for row in votes.soft] == [{label: 0.75, "another": 0.25} for _, label, _ in TEXTS[:3]]


# Formats


def test_json_is_the_report_itself(runs: dict[str, Path]) -> None:
    for folder in runs.values():
        text = (folder / "report.json").read_text()
        report = Report.model_validate_json(text)
        assert report.model_dump_json(indent=2) + "\n" == text
        for name in ("html", "markdown"):
            assert (folder / FILES[name]).read_text() == told(report, name)


def test_only_the_formats_that_were_asked_for_are_written(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics", evaluated=False)
    assert build(run, formats=["json"], out=tmp_path / "out") == tmp_path / "out" / "report.json"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]
    assert not (run / "report").exists()
    with pytest.raises(InputError, match="pdf: the formats are html, markdown, json"):
        build(run, formats=["pdf"])


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    first = build(fabricate(tmp_path / "a" / "topics")).parent
    again = {name: (first / name).read_bytes() for name in FILES.values()}
    build(tmp_path / "a" / "topics")
    other = build(fabricate(tmp_path / "b" / "topics")).parent
    for name, content in again.items():
        assert (first / name).read_bytes() == (other / name).read_bytes() == content


def test_markdown_has_the_figures_of_the_page(runs: dict[str, Path]) -> None:
    text = (runs["tame"] / "report.md").read_text()
    for line in (
        "| student (labels and rationales) | 74.0% (66.4% to 80.4%) | 148 | 0.500 (0.410 to 0.580) | 50.0% | 41.5 | 57.0M |",
        "- 13 times faster: 41.5 rows a second (cpu), the teacher 3.1.",
        "| dedup | 5 | 4 | 1 | examples | near duplicate 1 |",
        "The votes on 4 of 5 rows are unanimous.",
    ):
        assert line in text


def test_what_an_audit_says_is_what_the_command_says(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics")
    found = audited(run)
    assert (found.whole, found.signature) == (False, "not signed")
    assert found.findings >= len(found.shown) > 0
    assert not any(str(tmp_path) in one for one in (*found.shown, *found.not_looked_at))
    page = squeezed(read(build(run, audit=found)).text)
    assert f"audit: {found.findings:,} findings" in page
    assert plain(found.shown[0]) in page


def test_the_command_writes_what_was_asked_for_and_audits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert COMMANDS  # they are registered where the command line is imported
    monkeypatch.chdir(write_project(tmp_path).parent)
    run = fabricate(Path("runs/small"))
    fabricate(Path("runs/other"), evaluated=False)
    started = CliRunner().invoke(app, ["report", "--compare", "runs/other"])
    assert (started.exit_code, started.output.splitlines()[-1]) == (0, "report: runs/small/report/index.html")
    assert re.match(r"audit: [\d,]+ findings; `stepdistill audit` names them", started.output)
    found = Report.model_validate_json((run / "report" / "report.json").read_bytes())
    assert found.audit is not None
    assert found.side_by_side is not None
    assert found.side_by_side.runs == ["small", "other"]
    quiet = CliRunner().invoke(app, ["report", "--format", "json, markdown", "--out", "told", "--no-audit"])
    assert (quiet.exit_code, quiet.output) == (0, "report: told/report.md\n")
    assert sorted(path.name for path in Path("told").iterdir()) == ["report.json", "report.md"]
    assert Report.model_validate_json(Path("told/report.json").read_bytes()).audit is None
    refused = CliRunner().invoke(app, ["report", "--format", "pdf", "--no-audit"])
    assert isinstance(refused.exception, InputError)


# Nothing runs


def test_nothing_is_fetched_and_nothing_runs(runs: dict[str, Path]) -> None:
    path = runs["tame"] / "index.html"
    source, page = path.read_text(), read(path)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|javascript:", source)
    names = {name for _, attributes in page.elements for name in attributes}
    assert not names & {"src", "srcset", "action", "data", "xlink:href"}
    assert not any(name.startswith("on") for name in names)
    ids = {attributes.get("id") for _, attributes in page.elements}
    links = [str(attributes["href"]) for _, attributes in page.elements if "href" in attributes]
    assert links
    assert all(link[0] == "#" and link[1:] in ids for link in links)
    assert not {tag for tag, _ in page.elements} & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "img",
    }
    policies = [found for tag, found in page.elements if found.get("http-equiv") == "Content-Security-Policy"]
    assert [str(found["content"]).partition("; base")[0] for found in policies] == [
        "default-src 'none'; style-src 'unsafe-inline'"
    ]


def test_payloads_change_no_element_of_the_page(runs: dict[str, Path]) -> None:
    assert len(PAYLOADS) >= 30
    tame_page, hostile_page = (read(runs[name] / "index.html") for name in ("tame", "hostile"))

    def skeleton(page: Page) -> list[tuple[str, list[str]]]:
        return [(tag, sorted(attributes)) for tag, attributes in page.elements if tag not in ("mark", "i")]

    assert skeleton(hostile_page) == skeleton(tame_page)
    text = squeezed(hostile_page.text)
    for payload in SERIALISED:
        assert squeezed(shown(payload))[:500] in text, payload
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", hostile_page.text)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["tame", "hostile"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_in_a_browser_the_page_is_quiet_whole_and_usable(
    browser: Browser, runs: dict[str, Path], width: int, name: str, dark: bool
) -> None:
    with opened(browser, (runs[name] / "index.html").as_uri(), width=width, dark=dark) as tab:
        tab.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert tab.quiet()
        assert tab.page.evaluate("window.owned") is None
        assert tab.page.evaluate("document.scripts.length + document.images.length + document.forms.length") == 0
        assert too_wide(tab) == 0
        ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == dark
        if name == "tame" and (width == PHONE) != dark:  # axe takes seconds
            assert faults(tab) == []


def test_in_a_browser_the_contents_lead_to_their_sections_by_keyboard(browser: Browser, runs: dict[str, Path]) -> None:
    with opened(browser, (runs["tame"] / "index.html").as_uri()) as tab:
        tab.page.keyboard.press("Tab")
        assert tab.page.evaluate("document.activeElement.textContent") == "To the report"
        tab.page.focus("nav a[href='#provenance']")
        tab.page.keyboard.press("Enter")
        assert tab.page.evaluate("location.hash") == "#provenance"
        assert tab.page.evaluate("document.getElementById('provenance').getBoundingClientRect().top") < 900
        assert tab.quiet()


def rendered(text: str) -> tuple[str, list[Any]]:
    """Markdown as HTML, with all that a lenient renderer allows, and its tokens."""
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = [token for outer in reader.parse(text) for token in (outer, *(outer.children or ()))]
    return reader.render(text), tokens


def test_payloads_change_nothing_of_the_markdown(browser: Browser, runs: dict[str, Path], tmp_path: Path) -> None:
    texts = {name: (folder / "report.md").read_text() for name, folder in runs.items()}
    pages = {name: rendered(text) for name, text in texts.items()}
    outlines = {}
    for name, (_, tokens) in pages.items():
        kinds = [token.type for token in tokens]
        assert not {"html_inline", "html_block", "image", "link_open", "fence", "em_open", "s_open"} & set(kinds)
        outlines[name] = [kind for kind in kinds if kind not in ("text", "code_inline", "inline", "text_special")]
        words = [token.content for token in tokens if token.type == "text"]
        assert not any(re.search(r"://|www\.|[\w-]\.[a-z]{2}|[@<>|`$*_]|:\w+:", word) for word in words)
    assert outlines["hostile"] == outlines["tame"]
    path = tmp_path / "markdown.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><title>x</title>{pages['hostile'][0]}")
    with opened(browser, path.as_uri()) as tab:
        assert tab.quiet()
        assert tab.page.evaluate("window.owned") is None
        assert tab.page.evaluate("document.links.length + document.images.length + document.scripts.length") == 0
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", texts["hostile"])


@pytest.mark.parametrize("payload", SERIALISED, ids=range(len(SERIALISED)))
def test_a_payload_is_text_in_markdown_wherever_it_stands(payload: str) -> None:
    told = inert(payload)
    assert "\n" not in told
    for text, kinds in (
        (f"Before {told} after", {"paragraph"}),
        (f"- {told}", {"bullet_list", "list_item", "paragraph"}),
        (f"## {told}", {"heading"}),
        (f"| a | b |\n|---|---|\n| {told} | end |", {"table", "thead", "tbody", "tr", "th", "td"}),
    ):
        _, tokens = rendered(text)
        opened_kinds = {token.type.removesuffix("_open") for token in tokens if token.type.endswith("_open")}
        assert opened_kinds == kinds, (payload, text)
        assert not [token.type for token in tokens if token.type.startswith("html") or token.type == "image"]
    _, tokens = rendered(f"| a | b |\n|---|---|\n| {told} | end |")
    cells = [after.content for before, after in pairwise(tokens) if before.type == "td_open"]
    assert len(cells) == 2
    assert cells[1] == "end"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_is_text_in_markdown(text: str) -> None:
    _, tokens = rendered(f"| a | b |\n|---|---|\n| {inert(text)} | end |\n\n- {inert(text)}")
    assert [
        token.type for token in tokens if token.type.startswith(("html", "image", "link", "em_", "strong", "s_"))
    ] == []
    assert [token.type for token in tokens if token.type in ("td_open", "list_item_open", "heading_open", "hr")] == (
        ["td_open", "td_open", "list_item_open"]
    )
    told = [token.content for token in tokens if token.type in ("code_inline", "text")]
    assert squeezed(shown(text))[:399].rstrip() in " ".join(told).replace("\\|", "|")


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_a_payload_drives_no_terminal(payload: str) -> None:
    for text in (shown(payload), plain(payload)):
        assert all(character in "\n\t" or character.isprintable() for character in text)


@given(st.text(max_size=40))
def test_what_is_seen_stays_as_it_is(text: str) -> None:
    told = shown(text)
    assert shown(told) == told
    if text.isascii() and (text.isprintable() or set(text) <= {"\n", "\t"}):
        assert told == text


# Runs side by side


def test_runs_differ_in_settings_counts_and_models(tmp_path: Path) -> None:
    first, second = (view.read(fabricate(tmp_path / name, evaluated=name == "a")) for name in "ab")
    other = second.model_copy(
        update={
            "stamps": [
                one.model_copy(update={"settings": one.settings | {"alpha": 0.9}}) if one.stage == "train" else one
                for one in second.stamps
            ]
        }
    )
    found = side_by_side([first, other])
    assert found.runs == ["a", "b"]
    assert [(one.stage, one.setting, one.values) for one in found.settings] == [("train", "alpha", ["0.5", "0.9"])]
    assert all(one.rows[0] == one.rows[1] for one in found.counts)
    assert {one.model for one in found.models} == {*measured().eval_sets["test"].models}
    assert all(one.figures[1] is None for one in found.models)
    assert side_by_side([first, first]).runs == ["a (1)", "a (2)"]


@given(st.integers(1, 500), st.integers(1, 500), st.data())
def test_the_interval_of_a_difference_holds_it(rows: int, others: int, data: st.DataObject) -> None:
    from pipeline.intervals import accuracy_interval

    first, second = data.draw(st.integers(0, rows)), data.draw(st.integers(0, others))
    one = (first / rows, accuracy_interval(first, rows))
    other = (second / others, accuracy_interval(second, others))
    low, high = difference(one, other)
    assert -1 <= low <= one[0] - other[0] <= high <= 1
    assert difference(other, one) == pytest.approx((-high, -low))


def test_newcombes_interval_as_published() -> None:
    # 56 of 70 against 48 of 80: 0.2 with 0.0524 to 0.3339 (Newcombe 1998, table II, method 10)
    from pipeline.intervals import accuracy_interval

    found = difference((56 / 70, accuracy_interval(56, 70)), (48 / 80, accuracy_interval(48, 80)))
    assert found == pytest.approx((0.0524, 0.3339), abs=1e-4)


# Marks


@given(st.text(max_size=80), st.text(max_size=80))
def test_pieces_are_the_texts(one: str, other: str) -> None:
    first, second = pair(one, other)
    assert "".join(piece.text for piece in first) == one
    assert "".join(piece.text for piece in second) == other


@given(st.lists(st.sampled_from("late goal sinks the leaders in rain".split()), min_size=4, max_size=30))
def test_a_text_is_wholly_shared_with_itself(names: list[str]) -> None:
    text = " ".join(names)
    first, second = pair(text, f"Before, {text.upper()}!")
    assert [(piece.text, piece.shared) for piece in first] == [(text, True)]
    assert [piece.text for piece in second if piece.shared] == [text.upper()]


def test_runs_that_change_places_are_marked_and_chance_is_not() -> None:
    one, other = "alpha beta gamma delta one two three four", "one two three four alpha beta gamma delta"
    assert [piece.shared for piece in pair(one, other)[0] if piece.text.strip()] == [True]
    assert not any(piece.shared for piece in pair("a dog barks at it", "there is a cat")[0])
    told, _ = pair("left out, then shared words here", "shared words here left out", within="then shared words here")
    assert [piece.text for piece in told if piece.shared] == ["shared words here"]


def test_figures_on_the_page_are_those_of_the_manifests(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics")
    page = squeezed(read(build(run)).text)
    for stage in (name for name in STAGES if STAGES[name].on):
        folder = outputs.current(run, stage)
        assert folder is not None
        manifest = outputs.read_manifest(folder)
        assert manifest.key in page
        assert manifest.digest in page
        if stage != "evaluate":
            counts, what = manifest.counts, squeezed(STAGES[stage].what.replace("`", ""))
            assert (
                f"{stage} {what} {counts.rows_in} {counts.unit} in, {counts.kept} kept, {counts.dropped} dropped"
                in page
            )
            written = f"{counts.dropped} dropped; {counts.rows_out} rows written"
            assert (written in page) == (stage == "parse")
            for reason, number in counts.reasons.items():
                assert f"{reason.replace('_', ' ')} {number}" in page


def sampled(run: Path, figures: dict[str, Any], facts: dict[str, Any] | bytes | None) -> None:
    """A run of one sample stage with these figures of its teachers."""
    content = facts if isinstance(facts, bytes) else canonical_json(facts)
    extra = {} if facts is None else {"run-speed.json": content}
    finish(run, "sample", [], rows_in=0, extra=extra, details={"teachers": figures})


def figures_of(requests: int, failures: dict[str, int], tokens: int, cost: float) -> dict[str, Any]:
    answers = requests - sum(failures.values())
    return Figures(
        requests=requests, responses=answers, answers=answers - 7, prompt_tokens=9 * tokens, completion_tokens=tokens,
        failures=failures, cost_of_tokens=cost,
    ).model_dump()  # fmt: skip


def test_what_each_teacher_was_asked_stands_on_the_page(tmp_path: Path) -> None:
    facts = Facts(
        requests=1234, answers=1200, seconds=61.5, requests_per_second=20.0, tokens_per_second=987.6, prompt_tokens=5,
        cached_tokens=4321, completion_tokens=6, finish_reasons={"stop": 1200}, failures={"refused": 34}, cost=0.0456,
    )  # fmt: skip
    figures = {
        HOSTILE: figures_of(5000, {"prompt_too_long": 21, "refused": 34}, 123456, 7.5),
        "other": figures_of(2500, {}, 0, 0.0),
    }
    sampled(tmp_path / "run", figures, {HOSTILE: facts.model_dump()})
    path = build(tmp_path / "run")
    page = squeezed(read(path).text)
    assert (
        f"{squeezed(shown(HOSTILE))} refused 34, prompt too long 21 5,000 1,234 asked for this result 4,945 by 4,938 answers 1,111,104 "
        "4,321 cached "
        "123,456 25.0 an answer 987.6 in 61.5 s 7.50 0.046 for what was asked" in page
    )
    assert "other 2,500 none asked for this result 2,500 by 2,493 answers 0 0 0.0 an answer – –" in page
    assert "<script" not in path.read_text()


@pytest.mark.parametrize("left", [None, b"{}", b"[]", b"{", b'{"m": {"requests": 1}}'])
def test_without_measurements_the_page_shows_what_is_known(tmp_path: Path, left: bytes | None) -> None:
    sampled(tmp_path / "run", {"m": figures_of(100, {}, 1000, 0.5)}, left)
    page = squeezed(read(build(tmp_path / "run")).text)
    assert "m 100 none asked for this result 100 by 93 answers 9,000 1,000 10.8 an answer – 0.50" in page


def test_a_result_of_an_earlier_version_has_no_figures_of_teachers(tmp_path: Path) -> None:
    sampled(tmp_path / "run", {"m": {"requests": 3}}, None)
    assert "What the teachers were asked" not in read(build(tmp_path / "run")).text


def filtered(run: Path, names: Sequence[str]) -> Path:
    """A run whose quality stage dropped 40 of 50 rows of the first label and slice, and 5 of 50 of each other."""
    rows = [
        example(
            f"{name} {n}",
            label=name,
            gold=name,
            slices={names[0]: name},
            input="x" * (n + 1),
            entropy=(n % 2) * 0.97,
            agreement=1.0,
        )
        for name in names
        for n in range(50)
    ]
    gone = [row for row in rows if int(row.id.rpartition(" ")[2]) < (40 if row.label == names[0] else 5)]
    kept = [row for row in rows if row not in gone]
    found = change(counted(rows, Truth()), counted(gone, Truth()))
    drops = [Drop(id=row.id, reason="min_words", evidence={}) for row in gone]
    details = {"shift": found.model_dump(mode="json")}
    finish(run, "quality", kept, drops, rows_in=len(rows), details=details)
    return run


def test_what_filtering_did_stands_on_the_page(tmp_path: Path) -> None:
    page = squeezed(read(build(filtered(tmp_path / "run", ["travel", "food", "sports"]))).text)
    assert "quality 50 of 150 dropped" in page
    assert (
        "the labels shift by 23.3 points (travel 33.3% -> 10.0%, food 33.3% -> 45.0%, sports 33.3% -> 45.0%; p 1e-16, Cramér's V 0.70)"
        in page
    )
    for column in ("label", "true label", "slice: travel"):
        assert f"{column} rows in kept share, before and after dropped food 50 45 33.3% → 45.0% 10.0%" in page
    assert page.count("travel (mostly gone) 50 10 33.3% → 10.0% 80.0%") == 3
    assert "3 different; 23.3% of the rows moved from one to another; dropped against kept: p" in page
    assert "vote entropy, bits rows in kept share, before and after dropped 0 75 49 50.0% → 49.0% 34.7%" in page
    assert "input, characters 25.5 13 · 25 · 38 29.8 18 · 30 · 42 17 5 · 15 · 28 " in page
    assert "Of the labels that can be held against a true one, 100.0% were right before and 100.0% after." in page


def test_hostile_labels_and_slices_stay_text(tmp_path: Path) -> None:
    tame = read(build(filtered(tmp_path / "tame", ["travel", "food", "sports"])))
    path = build(filtered(tmp_path / "hostile", [HOSTILE, f"food {HOSTILE}", f"sports {HOSTILE}"]))
    assert [tag for tag, _ in read(path).elements] == [tag for tag, _ in tame.elements]
    assert "<script" not in path.read_text()
    assert "<script>alert(1)</script>" in read(path).text


def test_only_the_most_frequent_labels_and_those_that_are_gone_are_shown(tmp_path: Path) -> None:
    rows = [example(f"{name} {n}", label=f"l{name:02}") for name in range(30) for n in range(100 - name)]
    gone = [row for row in rows if row.label == "l20"]
    found = change(counted(rows, Truth()), counted(gone, Truth()))
    labels = shift_tables(found)[0]
    names, before, after = zip(*([cell.text for cell in row.cells[:3]] for row in labels.rows), strict=True)
    assert [*names] == [*(f"l{name:02}" for name in range(10)), "l20 (mostly gone)", "all others"]
    assert [row.cells[0].text for row in labels.rows if row.warned] == ["l20 (mostly gone)"]
    assert sum(int(rows_in.replace(",", "")) for rows_in in before) == len(rows)
    assert sum(int(kept.replace(",", "")) for kept in after) == len(rows) - len(gone)


def test_a_stage_that_dropped_nothing_has_no_table(tmp_path: Path) -> None:
    rows = [example(f"r{n}") for n in range(5)]
    details = {"shift": change(counted(rows, Truth()), counted([], Truth())).model_dump(mode="json")}
    finish(tmp_path, "quality", rows, details=details)
    assert "What filtering did" not in read(build(tmp_path)).text


@pytest.mark.parametrize("left", [None, [], {"rows": 1}, {"warnings": "x"}])
def test_a_record_of_another_shape_is_passed_over(tmp_path: Path, left: object) -> None:
    finish(tmp_path, "quality", [example()], details={"shift": left})
    assert "What filtering did" not in read(build(tmp_path)).text


def test_a_run_that_is_not_finished_has_a_page_of_what_there_is(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics", evaluated=False)
    assert "has not been evaluated yet" in read(build(run)).text
    partial = tmp_path / "partial"
    finish(partial, "ingest", [Prompt(id="1", source="a:1", input="x", gold=None, choices=None, columns={})])
    page = squeezed(read(build(partial, "half done")).text)
    assert "half done" in page
    assert "1 rows in, 1 kept, 0 dropped" in page
    assert "None: every row that came in went on." in page


def test_no_stage_no_page(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished stage"):
        build(tmp_path)
    assert not (tmp_path / "report").exists()


def test_a_changed_manifest_gives_no_page(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics")
    folder = outputs.current(run, "dedup")
    assert folder is not None
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"kept":4', b'"kept":5'))
    with pytest.raises(RunError, match="digest"):
        build(run)


def test_results_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics")
    assert "belongs together" not in read(build(run)).text
    quality = outputs.current(run, "quality")
    assert quality is not None
    rows = list(outputs.read(quality, Example))
    finish(run, "quality", rows[:1], parent="decontaminate")
    page = squeezed(read(build(run)).text)
    assert "shard was made from an earlier result of quality; train was made from shard, which is out of date" in page


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "topics")
    folder = outputs.current(run, "dedup")
    assert folder is not None
    (folder / "dropped.jsonl").unlink()
    with pytest.raises(RunError, match="dropped.jsonl: cannot be read"):
        build(run)


def test_only_a_few_of_many_drops_are_shown_and_the_page_says_so(tmp_path: Path) -> None:
    drops = [Drop(id=f"d{n}", reason="too_long", evidence={"words": n}) for n in range(500)]
    finish(
        tmp_path, "ingest", [Prompt(id="1", source="a:1", input="y" * 5000, gold=None, choices=None, columns={})], drops
    )
    page = squeezed(read(build(tmp_path, rows_per_reason=4)).text)
    assert "ingest: too long 500 dropped, 4 of them here" in page
    assert len(re.findall(r"\bd\d+\b", page)) == 4


def test_long_texts_are_compared_by_their_excerpts() -> None:
    evidence = {"text": "the beginning … the end", "twin_text": "y" * 5000, "twin": "r0"}
    row = view.shown_drop(Drop(id="r1", reason="near_duplicate", evidence=evidence), "word " * 1000)
    assert row.pair is not None
    assert [piece.text for piece in row.pair.own] == ["the beginning … the end"]
    assert "".join(piece.text for piece in row.pair.other).endswith("… (cut here; 5,000 characters in all)")


def test_long_texts_are_cut_and_say_so(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "long", [("long " * 1000 + str(n), "food", "short") for n in range(6)])
    assert "… (cut here; 5,001 characters in all)" in read(build(run)).text


# Parts

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


def places(drawing: Markup) -> list[tuple[float, float]]:
    """All points, ends and corners of a drawing's marks and lines."""
    found = [
        tuple(map(float, pair.split(",")))
        for points in re.findall(r'points="([^"]*)"', drawing)
        for pair in points.split()
    ]
    found += [(float(x), float(y)) for x, y in re.findall(r'cx="([^"]*)" cy="([^"]*)"', drawing)]
    found += [(float(x), float(y)) for x, y in re.findall(r'd="M([-\d.einfa]+) ([-\d.einfa]+)', drawing)]
    for x, y, width, height in re.findall(
        r'<rect[^>]*? x="([^"]*)" y="([^"]*)" width="([^"]*)" height="([^"]*)"', drawing
    ):
        found += [(float(x), float(y)), (float(x) + float(width), float(y) + float(height))]
    return found  # type: ignore[return-value]


def inside(drawing: Markup) -> bool:
    left, top, width, height = map(float, re.search(r'viewBox="([^"]*)"', drawing)[1].split())  # type: ignore[index]
    drawn_at = re.findall(r' (?:d|points|r|cx|cy|x|y|x1|x2|y1|y2|width|height)="([^"]*)"', drawing)
    return not any("n" in place or "e" in place for place in drawn_at) and all(
        left <= x <= left + width and top <= y <= top + height for x, y in places(drawing)
    )


@given(st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=40), max_size=4))
def test_line_charts_stay_inside_their_frame(lines: list[list[tuple[float, float]]]) -> None:
    named = [Line(name=f"line {n}", style="student", points=points) for n, points in enumerate(lines)]
    assert inside(line_chart(Chart(title="t", x="x", y="y", lines=named)))


@given(
    st.lists(
        st.lists(
            st.builds(
                Spot,
                at=st.one_of(NUMBERS, st.text(max_size=5)),
                mean=NUMBERS,
                interval=st.tuples(NUMBERS, NUMBERS),
                single=st.lists(NUMBERS, max_size=3),
            ),
            max_size=5,
        ),
        max_size=4,
    )
)
def test_charts_of_sweeps_stay_inside_their_frame(curves: list[list[Spot]]) -> None:
    assert inside(sweep_chart([Curve(label="c", spots=spots) for spots in curves], "knob", "label"))


@given(st.lists(st.tuples(st.integers(0, 10**9), NUMBERS, NUMBERS), max_size=12))
def test_reliability_diagrams_stay_inside_their_frame(drawn_bins: list[tuple[int, float, float]]) -> None:
    bins = [
        Bin.model_construct(low=0.0, high=1.0, rows=rows, confidence=confidence, accuracy=accuracy)
        for rows, confidence, accuracy in drawn_bins
    ]
    found = Calibration.model_construct(bins=bins, ece=0.1)
    assert inside(reliability(found, "student", "label"))


@given(NUMBERS, NUMBERS, NUMBERS)
def test_bars_stay_inside_their_frame(one: float, other: float, third: float) -> None:
    spread = Spread(rows=1, mean=one, quartiles=(one, other, third))
    for drawing in (
        charts.interval_bar(one, (other, third), "student"),
        charts.interval_dot(one, (other, third), "student"),
        charts.difference_bar(one, (other, third)),
        charts.funnel_bar(one, other),
        charts.share_bar(one),
        charts.share_bars(one, other, third),
        charts.spread_bar(spread, third, "before"),
    ):
        assert inside(drawing)


@given(*[st.integers(0, 10**6)] * 4)
def test_the_parts_of_an_agreement_fill_its_bar(both: int, first: int, second: int, neither: int) -> None:
    found = Comparison.model_construct(both=both, only_first=first, only_second=second, neither=neither)
    widths = [float(width) for width in re.findall(r' width="([\d.]+)"', charts.agreement_bar(found))]
    assert sum(widths) == pytest.approx(1000 if both + first + second + neither else 0, abs=0.3)


def test_charts_hold_a_line_for_each_model_and_split(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(curves())
    found = {chart.title: [line.name for line in chart.lines] for chart in view.charts(read_curves(tmp_path))}
    assert found == {
        "Label loss": ["student", "student, validation", "baseline", "baseline, validation"],
        "Rationale loss": ["student", "student, validation"],
    }
    assert view.charts([{"model": "student", "step": None, "label_loss": float("nan")}]) == []


def test_a_sweep_is_a_curve_for_each_combination(tmp_path: Path) -> None:
    (found,) = view.read_sweeps(fabricate(tmp_path / "topics"))
    assert (found.name, found.eval_set, found.axis, found.trainings) == ("fractions", "test", "train.fraction", 12)
    assert [(curve.label, [spot.at for spot in curve.spots]) for curve in found.curves] == [
        ("train.template=text", [0.1, 0.3, 1.0]),
        ("train.template=chat", [0.1, 0.3, 1.0]),
    ]
    assert found.curves[0].spots[0].mean == pytest.approx((60 + 63) / 300)
    (tmp_path / "topics" / "sweeps" / "fractions" / "results.jsonl").write_bytes(b"{}\n")
    with pytest.raises(RunError, match=r"results\.jsonl"):
        build(tmp_path / "topics")


def test_names_in_charts_are_escaped() -> None:
    for payload in PAYLOADS:
        line = Line(name=payload, style=payload, points=[(0, 0), (1, 1)])
        curve = Curve(label=payload, spots=[Spot(at=payload, mean=0.5, interval=(0.4, 0.6), single=[0.5])])
        for drawing in (
            line_chart(Chart(title=payload, x=payload, y=payload, lines=[line])),
            sweep_chart([curve], payload, payload),
            charts.key(charts.looks(line)),
        ):
            tags = {tag for tag, _ in Page(drawing).elements}
            assert tags <= {"svg", "g", "line", "text", "polyline", "path", "circle", "rect"}


def test_marks_tell_models_apart_without_colour() -> None:
    forms = [
        re.sub('class="[^"]*"', "", charts.mark(kind, 10, 10)) for kind in ("student", "baseline", "teacher", "other")
    ]
    assert len(set(forms)) == len(forms)


def test_figures_are_written_as_people_read_them() -> None:
    assert [written.size(value) for value in (None, 12, 1_500, 227_000_000, 1_300_000_000)] == [
        "–", "12 B", "1.5 kB", "227 MB", "1.3 GB",
    ]  # fmt: skip
    assert [written.duration(value) for value in (None, 0.0123, 1.234, 1234.5)] == ["–", "12.3 ms", "1.23 s", "1,234 s"]
    assert [written.part(*pair) for pair in ((1, 4), (0, 0), (3, None))] == ["1 of 4 (25.0%)", "–", "–"]
    assert [written.times(value) for value in (2.36, 13.4, 1234.0)] == ["2.4", "13", "1,234"]


def test_a_table_keeps_to_what_can_be_shown() -> None:
    found = measured([f"label {n}" for n in range(3)]).eval_sets["test"]
    assert tables.confused(found, "student")[0] == ("label 0", "label 1", 9)
    assert [row.cells[0].text for row in tables.models(found, costs()).rows][:3] == ["student", "baseline", "teacher"]


@given(st.floats(0, 1), st.floats(0, 1))
def test_funnel_bars_fill_what_came_in(one: float, other: float) -> None:
    start, end = max(one, other), min(one, other)
    kept, dropped = (
        float(width)
        for width in re.findall(r'class="(?:kept|dropped)"[^/]*?width="([\d.]+)"', str(funnel_bar(start, end)))
    )
    assert kept + dropped == pytest.approx(start * 1000, abs=4.2)
    assert dropped >= min(4, start * 1000) - 0.1 if start - end > 1e-6 else dropped == 0 or start > end


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_are_even_and_enclose(low: float, width: float) -> None:
    found = ticks(low, low + width)
    rounding = 1e-6 * (1 + abs(low) + width)
    assert found[0] <= low + rounding
    assert found[-1] >= low + width - rounding
    assert 2 <= len(found) <= 8
    steps = [after - before for before, after in pairwise(found)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-3)


@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e3)), max_size=200), st.integers(1, 50))
def test_thinning_keeps_the_mean(points: list[tuple[float, float]], most: int) -> None:
    found = thinned(points, most)
    assert len(found) <= most
    if points and len(points) % len(found) == 0:
        assert sum(y for _, y in found) / len(found) == pytest.approx(sum(y for _, y in points) / len(points))


@given(st.integers(0, 200), st.integers(0, 20), st.text(max_size=3))
def test_a_sample_is_in_order_and_the_same_again(rows: int, size: int, seed: str) -> None:
    found = drawn(range(rows), size, seed)
    assert found == sorted(set(found)) == drawn(range(rows), size, seed)
    assert len(found) == min(rows, size)


def test_every_row_is_as_likely_to_be_drawn() -> None:
    hits = [0] * 20
    for seed in range(4000):
        for row in drawn(range(20), 5, str(seed)):
            hits[row] += 1
    assert all(880 < count < 1120 for count in hits)  # 1000 expected, standard deviation 27


def test_the_whisker_stands_on_the_interval() -> None:
    bar = str(interval_bar(0.5, (0.4, 0.6), "student"))
    assert 'width="100.0"' in bar
    assert "M80.0 12H120.0" in bar
