"""The pages of the viewer: addresses, what may open them, and the server on localhost.

    with running(run) as address:      # http://127.0.0.1:8377/<token>/
        ...

    /                       stages with their counts and reasons           /row?id=..            a row's whole story
    /stage/quality?..       rows of a stage, kept or dropped, by filters   /eval?set=..&row=..   the same of an eval row
    /marks, /marks.jsonl    what was marked; POST /mark marks a row

Who opens a page must know the token in its address, and come by the name that the server has: 127.0.0.1 or localhost (DNS rebinding).
Pages hold no script and load nothing but one style sheet; the policy that is sent with them forbids the rest, so that markup in a row, had
it got past the escaping, would do nothing. Control characters are shown by their numbers. Nothing is written but ``marks.jsonl``, by POST.

Limits: whoever may read this process's memory or the terminal has the token; where a browser is started, its command line shows the
address to other users of the machine while it starts (``--no-browser``). There is one reader: no sessions, no rights.
"""

import logging
import multiprocessing
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, urlencode

import msgspec
from markupsafe import Markup, escape

from pipeline import lineage, marks, outputs
from pipeline.audit import STUMBLED, auditing, found_by
from pipeline.audits import chain
from pipeline.audits import manifests as contents
from pipeline.files import InputError, RunError, plain
from pipeline.marks import Mark
from pipeline.records import Drop, Example, Manifest, Prediction, Response, Trained, TrainingRow
from pipeline.report.charts import funnel_bar
from pipeline.report.view import out_of_date
from pipeline.requests import TEACHER
from pipeline.stages import STAGES
from pipeline.trace import FOLLOWED, find
from pipeline.viewer import rows
from pipeline.viewer.rows import START, Place, Slim, Wanted
from pipeline.viewer.story import EVAL, eval_story, story

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response as Answer
    from starlette.types import ASGIApp, Receive, Scope, Send

PORT: Final = 8377  # taken where it is free and none is asked for
BODY_BYTES: Final = 64 << 10
LONGEST: Final = 20_000  # characters of a text on the page of its row
SHORT: Final = 260  # in a list
STEPS_BACK: Final = 50
TEACHER_ROWS: Final = 300_000  # answers of the teacher that are held, to tell which rows a model answers otherwise
AT_ONCE: Final = 24  # requests
AMISS: Final = 20  # findings on a page that cannot be shown

HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

DIFFER: Final[dict[type, dict[str, str]]] = {
    Example: {"votes": "the votes differ", "gold": "not the true label"},
    Prediction: {"wrong": "not the true label", "teacher": "not as the teacher"},
}
"""The kinds of disagreement that rows can be looked for by, and what they are called."""


@dataclass
class Viewer:
    """What all pages share."""

    run: Path
    token: str
    hosts: frozenset[str] = frozenset()
    indexing: BaseProcess | None = None
    known: tuple[tuple[int, int, int], dict[str, Mark]] | None = field(default=None, repr=False)

    @property
    def base(self) -> str:
        """What all addresses begin with."""
        return f"/{self.token}"

    def marks(self) -> dict[str, Mark]:
        """The marks as they are now; read again only where the file has changed."""
        path = self.run / marks.FILE
        try:
            found = path.stat()
        except OSError:
            return {}
        state = (found.st_mtime_ns, found.st_size, found.st_ino)
        if self.known is None or self.known[0] != state:
            self.known = (state, marks.read(path))
        return self.known[1]

    def manifests(self) -> dict[str, Manifest]:
        """Of each stage that has a result in force, in order."""
        folders = {stage: outputs.current(self.run, stage) for stage in STAGES}
        return {stage: outputs.read_manifest(folder) for stage, folder in folders.items() if folder is not None}

    def ready(self) -> bool:
        """Whether rows can be found by id without reading through large files."""
        if self.indexing is not None and not self.indexing.is_alive():
            self.indexing = None
        return self.indexing is None


def serve(run: Path, *, port: int | None, browser: bool) -> None:
    """Serve a run's pages until Ctrl-C; prints the address.

    Raises InputError for a port that is taken, RunError for a run without results.
    """
    import webbrowser

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for sent in (signal.SIGINT, signal.SIGTERM):  # also where a shell started it in the background, deaf to Ctrl-C
        signal.signal(sent, stop)
    with suppress(KeyboardInterrupt), running(run, port=port) as address:
        sys.stdout.write(f"{plain(str(run))}: {address}  (Ctrl-C ends it)\n")
        sys.stdout.flush()
        if browser and sys.stdout.isatty() and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            webbrowser.open(address)
        threading.Event().wait()


@contextmanager
def running(run: Path, *, port: int | None = None) -> Iterator[str]:
    """A server in this process for the length of the block: the address of its first page. Raises as ``serve`` does."""
    import uvicorn

    viewer = Viewer(run, secrets.token_urlsafe(24))
    try:
        found = viewer.manifests()
    except RunError as error:
        raise RunError(f"{error}; `stepdistill audit` names all that is wrong in this run") from None
    if not found:
        raise RunError(f"{run}: no finished stage to look at; run `stepdistill run`")
    marks.read(run / marks.FILE)
    with (
        _listening(port) as (listener, number),
        tempfile.TemporaryDirectory(prefix="stepdistill-view-", ignore_cleanup_errors=True) as folder,
        lineage.elsewhere(run, Path(folder)),
        _indexing(viewer, Path(folder)),
    ):
        viewer.hosts = frozenset(f"{name}:{number}" for name in ("127.0.0.1", "localhost"))
        _log_plainly()
        config = uvicorn.Config(
            guarded(viewer),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=AT_ONCE,
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{number}{viewer.base}/"
        finally:
            server.should_exit = True
            thread.join(10)


@contextmanager
def _listening(port: int | None) -> Iterator[tuple[socket.socket, int]]:
    """A socket on the loopback interface, and its port. Raises InputError where the port that was asked for is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", PORT if port is None else port))
            listener.listen(64)
        except OSError as error:
            if port is not None:
                raise InputError(
                    f"--port {port}: {error.strerror}; give another, or none for one that is free"
                ) from None
            listener.close()
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.bind(("127.0.0.1", 0))
            listener.listen(64)
        yield listener, listener.getsockname()[1]
    finally:
        listener.close()


@contextmanager
def _indexing(viewer: Viewer, folder: Path) -> Iterator[None]:
    """Of a large run, make the indexes that `trace` has not made yet, in a process of its own while pages are served already."""
    if lineage.missing(viewer.run, FOLLOWED):
        process = multiprocessing.get_context("spawn").Process(
            target=make_indexes, args=(viewer.run, folder), daemon=True
        )
        process.start()
        viewer.indexing = process
    try:
        yield
    finally:
        if viewer.indexing is not None:
            viewer.indexing.terminate()
            viewer.indexing.join()


def make_indexes(run: Path, folder: Path) -> None:
    """What that process does; it ends with the one that started it, and says nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(os.devnull, "w") as sys.stderr, lineage.elsewhere(run, folder):  # noqa: PTH123 - a name of the system's
        lineage.prepare(run, FOLLOWED)


class _Plain(logging.Formatter):
    """A traceback may quote a row: no control character of it reaches the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(plain(line, 1000) for line in super().format(record).split("\n"))


def _log_plainly() -> None:
    log = logging.getLogger("uvicorn.error")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Plain("stepdistill view: %(message)s"))
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.ERROR)


def guarded(viewer: Viewer) -> "ASGIApp":
    """The pages, for who has the token and comes by the right name."""
    from starlette.responses import PlainTextResponse

    pages = _pages(viewer)
    token = viewer.token.encode()

    def refusal(scope: "Scope") -> "Answer | None":
        headers = dict(scope["headers"])
        if headers.get(b"host", b"").decode("latin-1") not in viewer.hosts:
            return PlainTextResponse("This server answers to 127.0.0.1 and localhost alone.\n", 421)
        if not secrets.compare_digest(
            scope["path"].partition("/")[2].partition("/")[0].encode(errors="replace"), token
        ):
            told = "The address lacks its token: open the one that `stepdistill view` printed.\n"
            return PlainTextResponse(told, 403)
        elsewhere = headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin")
        if elsewhere and scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("Another site may not mark rows.\n", 403)
        return None

    async def answer(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        await (refusal(scope) or pages)({**scope, "root_path": viewer.base}, receive, with_headers)

    return answer


def _pages(viewer: Viewer) -> "Starlette":
    import jinja2
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import FileResponse, HTMLResponse, RedirectResponse
    from starlette.responses import Response as Answer
    from starlette.routing import Route

    templates = _environment(viewer)

    def rendered(template: str, status: int = 200, /, **values: Any) -> Answer:
        manifests = values.pop("manifests", None)
        page = templates.get_template(f"{template}.jinja").render(
            manifests=viewer.manifests() if manifests is None else manifests, name=viewer.run.name, **values
        )
        return HTMLResponse(page, status)

    def told(status: int, title: str, problem: str, found: list[str] | None = None) -> Answer:
        return rendered("error", status, manifests={}, title=title, problem=problem, found=found)

    def unreadable(error: Exception) -> Answer:
        """The page in the place of one that stumbled over what lies in the run folder; what else it stumbled over goes to the terminal."""
        found = amiss(viewer.run)
        if not found and not isinstance(error, RunError):
            raise error
        problem = str(error) if isinstance(error, RunError) else "a manifest of this run is not as any stage writes it"
        return told(409, "The run cannot be read", problem, found)

    def page(
        make: Callable[[Request], tuple[str, dict[str, Any]] | str | Answer],
    ) -> Callable[[Request], Answer]:
        """An address whose function names a template and its values, or another address to go to, or answers itself."""

        def answer(request: Request) -> Answer:
            try:
                made = make(request)
                if isinstance(made, Answer):
                    return made
                return RedirectResponse(made, 303) if isinstance(made, str) else rendered(made[0], **made[1])
            except InputError as error:
                return told(404, "Not found", str(error))
            except (*STUMBLED, jinja2.TemplateError) as error:
                return unreadable(error)

        return answer

    async def mark(request: Request) -> Answer:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > BODY_BYTES:
                return await run_in_threadpool(told, 413, "Too long", "a note is at most 2,000 characters long")
        return await run_in_threadpool(page(partial(_mark, viewer, body)), request)

    def failed(request: Request, error: Exception) -> Answer:
        status = error.status_code if isinstance(error, HTTPException) else 500
        problem = {404: "there is no page with this address", 405: "this address cannot be used so"}.get(status)
        return told(status, "Not found" if status == 404 else "Not possible", problem or "the terminal says more")

    def style(request: Request) -> Answer:
        return FileResponse(Path(__file__).with_name("style.css"), media_type="text/css")

    def download(request: Request) -> Answer:
        given = {"content-disposition": 'attachment; filename="marks.jsonl"'}
        return Answer(marks.lines(viewer.marks().values()), media_type="application/jsonl", headers=given)

    pages = Starlette(
        routes=[
            Route("/", page(partial(_overview, viewer))),
            Route("/stage/{name}", page(partial(_stage, viewer))),
            Route("/row", page(partial(_row, viewer))),
            Route("/eval", page(partial(_eval_row, viewer))),
            Route("/marks", page(partial(_marks, viewer))),
            Route("/marks.jsonl", page(download)),
            Route("/mark", mark, methods=["POST"]),
            Route("/style.css", style),
        ],
        exception_handlers={HTTPException: failed, 500: failed},
    )
    pages.router.redirect_slashes = False
    return pages


def amiss(run: Path) -> list[str]:
    """What the audit finds in the manifests of a run alone, at most AMISS lines of it; nothing where they are as they were written."""
    try:
        with auditing(run) as (audited, found):
            lines = [*found, *found_by(chain.check, audited), *found_by(contents.check, audited)]
    except InputError as error:
        return [str(error)]
    return [str(finding) for finding in lines[:AMISS]]


def _overview(viewer: Viewer, request: "Request") -> tuple[str, dict[str, Any]]:
    manifests = viewer.manifests()
    marked = viewer.marks().values()
    return "overview", {
        "manifests": manifests,
        "out_of_date": out_of_date(manifests),
        "bars": _bars(manifests),
        "funnel_bar": funnel_bar,
        "stages": STAGES,
        "good": sum(mark.mark == "good" for mark in marked),
        "bad": sum(mark.mark == "bad" for mark in marked),
    }


def _bars(manifests: Mapping[str, Manifest]) -> dict[str, tuple[float, float]]:
    """For each stage, which share of the input reaches it, and which leaves it."""
    found: dict[str, tuple[float, float]] = {}
    for stage, manifest in manifests.items():
        before = [found[parent][1] for parent in manifest.parents if parent in found and stage != EVAL]
        start = before[-1] if before else 1.0
        counts = manifest.counts
        found[stage] = (start, start * counts.kept / counts.rows_in if counts.rows_in else 0.0)
    return found


def _stage(viewer: Viewer, request: "Request") -> tuple[str, dict[str, Any]]:
    name = request.path_params["name"]
    folder = outputs.current(viewer.run, name) if name in STAGES else None
    if folder is None:
        raise InputError(f"{plain(name, 80)}: no stage of this run has a result by this name")
    given = request.query_params
    dropped = given.get("rows") == "dropped"
    manifests = viewer.manifests()
    manifest, record = manifests[name], STAGES[name].gives
    wanted = _wanted(given, Drop if dropped else record)
    files = rows.parts(folder, dropped=dropped)
    at = rows.place(given["at"], files) if given.get("at") else START
    if given.get("row", "").strip() and files:
        at = rows.at_row(_whole(given["row"], "row"), files)
    fits = None
    if wanted.differ == "teacher":
        fits = partial(_not_as_the_teacher, _teachers_answers(folder, manifest.key))
    found = rows.page(files, at, wanted, fits=fits)
    back = [step for step in given.get("back", "").split("_") if step][-STEPS_BACK:]
    filtered = wanted != Wanted()
    return "stage", {
        "manifests": manifests,
        "stage": STAGES[name],
        "counts": manifest.counts,
        "dropped": dropped,
        "wanted": wanted,
        "filtered": filtered,
        "asked": {field: value for field, value in given.items() if field not in ("at", "back", "row") and value},
        "found": found,
        "at": at,
        "start": START,
        "first": None if filtered or not found.rows else rows.row_number(at, files),
        "back": back,
        "row_of": lineage.row_of,
        "marks": viewer.marks(),
        "match": _match,
        "choices": _choices(manifests, name, Drop if dropped else record),
        "record": (Drop if dropped else record).__name__,
    }


def _wanted(given: Mapping[str, str], record: type) -> Wanted:
    """What the address asks for, as far as rows of this kind have it. Raises InputError."""
    score = given.get("score", "").strip()
    differ = given.get("differ", "")
    if differ not in ("", *DIFFER.get(record, {})):
        raise InputError(f"{plain(differ, 40)}: no kind of disagreement of these rows")
    return Wanted(
        text=given.get("q", "").strip(),
        reason=given.get("reason", "") if record is Drop else "",
        label=given.get("label", "").strip(),
        teacher=given.get("teacher", ""),
        score=_whole(score, "score") if score and record is Example else None,
        differ=differ,  # type: ignore[arg-type]  # was looked up above
    )


def _whole(text: str, what: str) -> int:
    text = text.strip().replace(",", "")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise InputError(f"{plain(text, 40)}: {what} is a whole number")
    return max(int(text), 1)


def _choices(manifests: Mapping[str, Manifest], stage: str, record: type) -> dict[str, dict[str, str]]:
    """What the fields of the search offer for rows of this kind: field -> value -> what it is called."""
    found: dict[str, dict[str, str]] = {}
    manifest = manifests[stage]
    if record is Drop:
        found["reason"] = {
            name: f"{name.replace('_', ' ')} ({count:,})" for name, count in manifest.counts.reasons.items()
        }
    settings = manifests["parse"].settings if "parse" in manifests else {}
    labels = settings.get("labels")
    if record not in (Trained, TrainingRow):
        names = [label for label in labels if isinstance(label, str)] if isinstance(labels, list) else []
        found["label"] = dict(zip(names, names, strict=True))
    if record is Prediction:
        models = manifest.details.get("models")
        found["teacher"] = {str(name): str(name) for name in models} if isinstance(models, list) else {}
    elif "sample" in manifests and record in (Response, Example):
        named = [name.removeprefix(TEACHER) for name in manifests["sample"].identities if name.startswith(TEACHER)]
        found["teacher"] = dict(zip(named, named, strict=True))
    order = list(STAGES)
    if record is Example and "judge" in manifests and order.index(stage) >= order.index("judge"):
        found["score"] = {str(score): f"{score} of 5" for score in range(1, 6)}
    if record in DIFFER:
        found["differ"] = DIFFER[record]
    return found


@lru_cache(maxsize=1)
def _teachers_answers(folder: Path, key: str) -> dict[tuple[str, str], str | None]:
    """What the teacher answered to each eval row. Raises InputError where these are too many to hold."""
    files = rows.parts(folder, dropped=False)
    found = rows.page(files, START, Wanted(teacher="teacher"), size=TEACHER_ROWS, seconds=None)
    if found.next is not None:
        raise InputError(
            f"more than {TEACHER_ROWS:,} answers of the teacher: too many to compare with; use `jq` on the files"
        )
    given = [one.row for one in found.rows if one.row is not None and one.row.get("model") == "teacher"]
    return {(str(row.get("eval_set")), str(row.get("row"))): row.get("label") for row in given}


def _not_as_the_teacher(answers: Mapping[tuple[str, str], str | None], row: Slim) -> bool:
    place = (row.eval_set, row.row)
    return row.model != "teacher" and place in answers and answers[place] != row.label


def _row(viewer: Viewer, request: "Request") -> tuple[str, dict[str, Any]] | str:
    id = request.query_params.get("id", "").strip()
    if not id:
        raise InputError(
            "give the id of a row: its own, a response's, a request's, or its place in the source, as train.jsonl:17"
        )
    if not viewer.ready():
        return "wait", {"id": id}
    row = find(viewer.run, id)
    if row != id:
        return _address(viewer, "row", id=row)
    told = story(viewer.run, row)
    stage = told.places[-1][0] if told.places else None
    return "row", {"told": told, "mark": viewer.marks().get(row), "id": row, "mark_stage": stage, "run": viewer.run}


def _eval_row(viewer: Viewer, request: "Request") -> tuple[str, dict[str, Any]]:
    told = eval_story(viewer.run, request.query_params.get("set", ""), request.query_params.get("row", ""))
    return "eval", {"told": told, "mark": viewer.marks().get(told.id), "id": told.id, "mark_stage": EVAL}


def _marks(viewer: Viewer, request: "Request") -> tuple[str, dict[str, Any]]:
    kind = request.query_params.get("kind", "")
    found = viewer.marks()
    start = _whole(request.query_params.get("from", "1"), "from")
    chosen = [mark for mark in reversed(found.values()) if kind in ("", mark.mark)]
    return "marks", {
        "marks": chosen[start - 1 : start - 1 + rows.SIZE],
        "kind": kind if kind in ("good", "bad") else "",
        "counts": {"good": sum(mark.mark == "good" for mark in found.values()), "all": len(found)},
        "start": start,
        "chosen": len(chosen),
        "size": rows.SIZE,
        "eval": EVAL,
    }


def _mark(viewer: Viewer, body: bytes, request: "Request") -> str:
    """Mark a row as the form says; the address of its page. Raises InputError."""
    try:
        given = dict(
            parse_qsl(
                body.decode("ascii"), keep_blank_values=True, strict_parsing=True, max_num_fields=10, errors="strict"
            )
        )
    except (ValueError, UnicodeError):
        raise InputError("the form cannot be read; mark the row on its page") from None
    id, stage, said = given.get("id", ""), given.get("stage") or None, given.get("mark", "")
    note = given.get("note", "").replace("\r\n", "\n").strip()
    if said not in ("good", "bad", "none"):
        raise InputError("a mark is good, bad or none; choose one")
    if len(note) > marks.LONGEST_NOTE:
        raise InputError(f"the note has {len(note):,} characters; {marks.LONGEST_NOTE:,} is the most")
    if stage == EVAL:
        name, _, row = id.partition("/")
        eval_story(viewer.run, name, row)
        address = _address(viewer, "eval", set=name, row=row)
    elif find(viewer.run, id) != id or stage not in (None, *STAGES):
        raise InputError(f"{plain(id, 80)}: not the id of an input row; mark the row on its page")
    else:
        address = _address(viewer, "row", id=id)
    mark = None if said == "none" else Mark(id=id, mark="good" if said == "good" else "bad", note=note, stage=stage)
    marks.put(viewer.run, id, mark)
    return f"{address}#mark"


def _address(viewer: Viewer, path: str, /, **values: object) -> str:
    """An address of this viewer; what is empty is left out."""
    given = urlencode({name: str(value) for name, value in values.items() if value not in (None, "")}, quote_via=quote)
    return f"{viewer.base}/{path}{'?' if given else ''}{given}"


def _environment(viewer: Viewer) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (shown, short, words, number, pretty, parted, flat)
    environment.filters |= {function.__name__: function for function in filters}
    environment.globals |= {"link": partial(_address, viewer), "inside": partial(inside, viewer.run)}
    return environment


HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff\ud800-\udfff]"
)
"""Characters that are not seen and do something: control characters, those that turn the order of writing around, and the invisible."""


def shown(value: object, limit: int = LONGEST, *, find: str = "") -> Markup:
    """A text for the page: escaped, hidden characters by their numbers, at most ``limit`` characters, and what was looked for marked."""
    text = str(value)
    rest = len(text) - limit
    text = text if rest <= 0 else text[: limit - 1]
    pieces = []
    position = 0
    if find:
        lowered, wanted = rows.ascii_lower(text), rows.ascii_lower(find)
        while (place := lowered.find(wanted, position)) >= 0:
            pieces += [
                _visible(text[position:place]),
                Markup("<mark>%s</mark>") % _visible(text[place : place + len(wanted)]),
            ]
            position = place + len(wanted)
    pieces.append(_visible(text[position:]))
    if rest > 0:
        pieces.append(Markup('<span class="more">… %s more</span>') % f"{rest + 1:,}" if limit > SHORT else Markup("…"))
    return Markup("").join(pieces)


def _visible(text: str) -> Markup:
    position, pieces = 0, []
    for match in HIDDEN.finditer(text):
        code = ord(match[0])
        told = f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"
        pieces += [escape(text[position : match.start()]), Markup('<span class="code">%s</span>') % told]
        position = match.end()
    return Markup("").join([*pieces, escape(text[position:])])


def short(value: object, find: str = "") -> Markup:
    """The beginning of a text, on a list."""
    return shown(value, SHORT, find=find)


def parted(text: str, spans: Mapping[str, tuple[int, int]]) -> Markup:
    """A response with its parts marked: each is named for who cannot see the colours."""
    if len(text) > LONGEST:
        return shown(text)
    pieces, position = [], 0
    for name, (start, end) in sorted(spans.items(), key=lambda item: item[1]):
        if start < position:
            continue
        told = {"cut": "cut off"}.get(name, name)
        part = '<span class="part %s"><span class="tag">%s</span>%s</span>'
        pieces += [_visible(text[position:start]), Markup(part) % (name, told, _visible(text[start:end]))]
        position = end
    return Markup("").join([*pieces, _visible(text[position:])])


def words(name: object) -> str:
    """``near_duplicate`` as words."""
    return str(name).replace("_", " ")


def number(value: object) -> str:
    """``12,345``; floats with up to four digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def pretty(value: object) -> str:
    """A value as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def flat(value: object) -> str:
    """A value of any kind on one line."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def inside(run: Path, place: str) -> str:
    """A place in the run, without the run's own path."""
    return place.removeprefix(f"{run}/")


def _match(row: Mapping[str, Any] | None, text: str, seen: tuple[str, ...]) -> tuple[str, str] | None:
    """The first field in which a text stands that is not on the list anyway, and what stands around it."""
    wanted = rows.ascii_lower(text)
    for name, value in rows.texts(row) if row is not None and wanted else ():
        place = rows.ascii_lower(value).find(wanted)
        if place < 0:
            continue
        if name in seen and place + len(wanted) < SHORT:
            return None
        start = max(place - 60, 0)
        return name, f"{'…' if start else ''}{value[start : place + len(wanted) + 120]}"
    return None


__all__ = ["PORT", "Place", "Viewer", "guarded", "running", "serve", "shown"]
