"""The docs: a site without a broken link that loads nothing from elsewhere, and pages whose commands run as they stand."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.conftest import write_jsonl
from tests.models import make_model

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BIN = Path(sys.executable).parent
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
MADE = {"commands", "errors", "filters", "records", "settings"}  # by docs/generate.py


def commands(page: str) -> str:
    """The ``sh`` blocks of a page, one after the other: what a reader types."""
    return "\n".join(re.findall(r"^```sh\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE))


def files(page: str) -> dict[str, str]:
    """Name -> content of each file that a page shows whole: blocks with a title."""
    found = re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    return dict(found)


def run(script: str, folder: Path) -> str:
    """Run a page's commands as a reader's shell would, and stop at the first that fails; what they printed."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,  # against hanging; on a machine with much other work it takes its time
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


class Loads(HTMLParser):
    """What a page has the browser fetch by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = dict(attrs).get(LOADING.get(tag, ""))
        if wanted and dict(attrs).get("rel") != "canonical":
            self.addresses.append(wanted)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: it fails on a broken link or anchor."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "mkdocs.yml").write_bytes((ROOT / "mkdocs.yml").read_bytes())
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr, done.stdout + done.stderr
    return folder / "build/docs"


def test_every_page_is_in_the_site_and_in_its_navigation(site: Path) -> None:
    pages = {path.stem for path in DOCS.glob("*.md")}
    named = set(
        re.findall(r"^ +- .*?: ([\w-]+)\.md$|^  - .*: ([\w-]+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    )
    assert {one or other for one, other in named} == pages
    assert {path.stem for path in site.glob("*.html")} - {"404"} == pages


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.glob("*.html"))
    assert len(pages) > 15
    for path in pages:
        parser = Loads()
        parser.feed(path.read_text())
        assert parser.addresses
        assert not [address for address in parser.addresses if re.match(r"(?:[a-z]+:)?//", address)], path


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "mkdocs.yml").write_bytes((ROOT / "mkdocs.yml").read_bytes())
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# Page\n\n[elsewhere](nothing.md) and [here](#no-such-heading)\n")
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    assert "page does not exist" in said
    assert "anchor does not exist" in said


def test_links_out_of_the_docs_lead_somewhere() -> None:
    """README's links, and those by which pages are read on GitHub as plain Markdown."""
    for path in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
            if not re.match(r"[a-z]+:", target):
                assert (path.parent / target).exists(), (path.name, target)


@pytest.mark.slow
def test_the_example_of_your_own_task_runs(tmp_path: Path) -> None:
    """Its files and commands as they stand; the teacher's answers are recorded ones, and the student is tiny."""
    shown = files("your-own-task.md")
    start, rest = commands("your-own-task.md").split("stepdistill run --until quality", 1)
    run(start.split("stepdistill check")[0], tmp_path)
    folder = tmp_path / "desk"
    for name, content in shown.items():
        (folder / name).write_text(content)
    assert "24 inputs; eval sets: test 12" in run("stepdistill check", folder)  # with the settings of the page
    rows = [
        line.split(",") for name in ("messages.csv", "test.csv") for line in shown[name].splitlines()[1:] if "," in line
    ]
    labels = ["delivery", "payment", "account"]
    answers = [
        f"The message is about thing {number}, which is a matter of {label}. So the answer is {label}."
        for number, label in zip(range(len(rows)), itertools.cycle(labels), strict=False)
    ]
    said = [{"id": row[0], "completion": answer} for row, answer in zip(rows, answers, strict=True)]
    write_jsonl(folder / "said.jsonl", said)
    tiny = make_model(tmp_path / "tiny")
    settings = re.sub(
        r"teacher: \{backend: vllm.*\}\n", "teacher: {backend: replay, completions: said.jsonl}\n", shown["stages.yaml"]
    )
    settings = re.sub(
        r"from: embedded, layers: 8\}, epochs: 8",
        f"from: {shlex.quote(str(tiny))}}}, precision: float32, accept_terms: made up, epochs: 1",
        settings,
    )
    cheap = (
        "evaluate: {safety: false, latency: 0, rationales: 2, bootstrap: 10}"  # what it measures is tested elsewhere
    )
    settings = settings.replace("evaluate: {}", cheap)
    assert settings.count("said.jsonl") == settings.count("accept_terms") == settings.count(cheap) == 1
    (folder / "stages.yaml").write_text(settings)
    printed = run("stepdistill plan\nstepdistill run --until quality" + rest, folder)
    assert "24 requests to ask" in printed or "nothing to ask" in printed
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 24
    assert (folder / "runs/desk/report/index.html").is_file()
