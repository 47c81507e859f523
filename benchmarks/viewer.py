"""What `view` takes on a large run: the first page, any page, searches and filters, a row's story; and the server's memory.

    python -m benchmarks.viewer FOLDER [--repeat 3]

FOLDER is a project that `benchmarks.whole_run` made. The server is the command itself, started anew; the run's own indexes are moved out of
the way meanwhile, so that what it makes for itself is measured too. Times are those of a client on the same machine, whole pages, the
shortest and the longest of REPEAT. Memory is the server's resident set (VmRSS) after each page, and its peak (VmHWM).
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx

from pipeline import lineage, outputs
from pipeline.config import load

COMMAND = [sys.executable, "-c", "from pipeline.cli import main; main()", "view", "--no-browser", "--port", "0"]


def memory(process: int, what: str) -> int:
    """MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(rf"^{what}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) >> 10


def told(text: str) -> str:
    """What a page of rows says it found."""
    found = re.search(r'<h2 id="rows-title"[^>]*>(.*?)</h2>\s*(?:<p class="note">(.*?)</p>)?', text, re.DOTALL)
    return " ".join(f"{found[1]} {found[2] or ''}".split()) if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    run = load(given.folder / "stages.yaml").run
    own, aside = run / lineage.FOLDER, run.with_name(f"{run.name}-index")
    if own.is_dir():
        own.rename(aside)
    try:
        measure(given.folder / "stages.yaml", run, given.repeat)
    finally:
        if aside.is_dir():
            aside.rename(own)


def measure(settings: Path, run: Path, repeat: int) -> None:
    began = time.perf_counter()
    with subprocess.Popen([*COMMAND, "-c", settings], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = re.search(r"http://\S+/", server.stdout.readline())
        assert address is not None
        print(f"from the command to the address: {time.perf_counter() - began:.2f} s")
        try:
            pages(address[0], server.pid, run, repeat)
        finally:
            server.terminate()


def pages(address: str, process: int, run: Path, repeat: int) -> None:
    folder = outputs.current(run, "quality")
    assert folder is not None
    files = outputs.row_files(folder)
    with (folder / files[-1].path).open("rb") as rows:
        last = rows.read().splitlines()[-1]
    row = lineage.Hit(folder, 0, last).row
    rare = " ".join(row["input"].split()[:6])
    total = sum(file.rows or 0 for file in files)
    looked = {
        "first page": "",
        "first page of a stage": "stage/quality",
        "page in the middle, by its row": f"stage/quality?row={total // 2}",
        "last page, by its row": f"stage/quality?row={total - 10}",
        "dropped rows": "stage/quality?rows=dropped",
        "search, a frequent word": "stage/quality?q=people",
        "search, what one row has": f"stage/quality?q={rare}",
        "search, what no row has": "stage/quality?q=zebra crossing in Ulan Bator",
        "search, a key's name": "stage/quality?q=rationale",
        "filter, a label": f"stage/quality?label={row['label']}",
        "filter, a label that no row has": "stage/quality?label=none such",
        "filter, the votes differ": "stage/quality?differ=votes",
    }
    client = httpx.Client(timeout=60)

    def timed(path: str) -> tuple[list[float], httpx.Response]:
        times = []
        for _ in range(repeat):
            start = time.perf_counter()
            found = client.get(address + path)
            times.append(time.perf_counter() - start)
        return times, found

    for name, path in looked.items():
        times, found = timed(path)
        assert found.status_code == 200, found.text
        print(f"{name}: {min(times):.2f} to {max(times):.2f} s; {memory(process, 'VmRSS')} MiB; {told(found.text)}")
    steps, path, start = 0, looked["search, what no row has"], time.perf_counter()
    while path:
        found = client.get(address + path)
        steps += 1
        further = re.search(r'rel="next" href="/[^/]*/([^"]*)"', found.text)
        path = further[1].replace("&amp;", "&") if further else ""
    print(f"search to the very end, what no row has: {steps} pages, {time.perf_counter() - start:.2f} s")
    start = time.perf_counter()
    while "One moment" in client.get(f"{address}row?id={row['id']}").text:
        time.sleep(0.5)
    print(f"until rows can be found by their ids: {time.perf_counter() - start:.1f} s more")
    times, found = timed(f"row?id={row['id']}")
    assert found.status_code == 200, found.text
    print(f"a row's story: {min(times):.2f} to {max(times):.2f} s; {memory(process, 'VmRSS')} MiB")
    print(f"memory at its highest: {memory(process, 'VmHWM')} MiB")


if __name__ == "__main__":
    main()
