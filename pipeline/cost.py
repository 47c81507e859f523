"""What answering takes: seconds a row, bytes on disk and in memory, money.

    with peak_memory("cpu") as memory:
        seconds = latency(lambda row: ask(texts[row]), 50)      # one row at a time, after one that does not count
    cost(parameters=57_000_000, folder=Path("student"), memory=memory.bytes, latencies=seconds, rows=150, seconds=4.7, batch_size=32,
         price_per_hour=0.4)
    -> {"latency": {"p50": 0.031, "p95": 0.044, "p99": 0.047}, "throughput": 31.9, "bytes_on_disk": 118402113, "cost_per_1000": 0.0035, ..}

Limits: measurements of this machine at this hour; other work beside it counts in. On a CPU memory is the resident set of the whole process,
its libraries and all models that it holds included, looked at a hundred times a second, so that a shorter peak goes unseen; on a GPU
what PyTorch allocated there, without the driver's own. The memory of a teacher in another process is not seen. The 99th percentile of
fifty rows is hardly more than the slowest one.
"""

import ctypes
import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.metrics import Cost

INTERVAL: Final = 0.01  # seconds between two looks at the resident set
PERCENTILES: Final = (50, 95, 99)
CARRIED: Final = (  # what a model needs to answer, of all that may lie in its folder
    *("*.safetensors", "*.safetensors.index.json", "*.gguf", "config.json", "generation_config.json", "format.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "chat_template*"),
)  # fmt: skip


@dataclass
class Peak:
    """The most memory in bytes, known once the measuring has ended."""

    bytes: int = 0


def latency(
    ask_one: Callable[[int], object], rows: int, *, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """The seconds that ``ask_one(row)`` takes for each of ``rows``, one after the other.

    The first row is asked once more before, uncounted: what is loaded or compiled at the first call is no latency. ``ask_one`` has to
    wait for its answer; text that has left a GPU has been waited for.
    """
    if rows:
        ask_one(0)
    found = []
    for row in range(rows):
        began = clock()
        ask_one(row)
        found.append(clock() - began)
    return found


def percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """p50, p95 and p99, between two measurements by straight line; None without a measurement."""
    ordered = sorted(seconds)
    if not ordered:
        return None
    found = {}
    for percent in PERCENTILES:
        whole, part = divmod((len(ordered) - 1) * percent, 100)
        above = ordered[min(whole + 1, len(ordered) - 1)]
        found[f"p{percent}"] = ordered[whole] + (above - ordered[whole]) * part / 100
    return found


def bytes_on_disk(folder: Path) -> int | None:
    """The bytes of the weights, the tokenizer and the settings in a checkpoint's folder; None where it holds no weights.

    Model cards, signatures, checkpoints of the training and weights in other formats do not count.
    """
    files = {file for pattern in CARRIED for file in folder.glob(pattern) if file.is_file()}
    if not any(file.suffix in (".safetensors", ".gguf") for file in files):
        return None
    return sum(file.stat().st_size for file in files)


@contextmanager
def peak_memory(
    device: str, *, resident: Callable[[], int] | None = None, interval: float = INTERVAL
) -> Iterator[Peak]:
    """Measure the most memory in use while the block runs: ``with peak_memory("cuda") as memory: .. ; memory.bytes``.

    On ``cuda`` that is what PyTorch had allocated on the device, counted anew from here; elsewhere the process's resident set, which
    ``resident`` tells and is looked at before, after and every ``interval`` seconds in between.
    """
    peak = Peak()
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
        try:
            yield peak
        finally:
            peak.bytes = torch.cuda.max_memory_allocated()
        return
    look = resident or _resident()
    _give_back()
    peak.bytes = look()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(interval):
            peak.bytes = max(peak.bytes, look())

    watcher = threading.Thread(target=watch, name="peak-memory", daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
        peak.bytes = max(peak.bytes, look())


def _give_back() -> None:
    """What was freed goes back to the system: a training in this process before would count as the model's otherwise."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def _resident() -> Callable[[], int]:
    import psutil

    process = psutil.Process()

    def look() -> int:
        found: int = process.memory_info().rss
        return found

    return look


def cost_per_1000(price_per_hour: float | None, rows_per_second: float | None) -> float | None:
    """What a thousand rows cost at the full batch, in the currency of the price; None without a price or a speed."""
    if price_per_hour is None or not rows_per_second:
        return None
    return price_per_hour / 3600 / rows_per_second * 1000


def cost(
    *,
    rows: int,
    seconds: float,
    parameters: int | None = None,
    folder: Path | None = None,
    memory: int | None = None,
    latencies: Sequence[float] = (),
    batch_size: int | None = None,
    price_per_hour: float | None = None,
) -> Cost:
    """The measurements of one model as run-speed.json holds them.

    ``rows`` were answered in ``seconds`` in batches of ``batch_size``; ``latencies`` are the seconds of single rows (``latency``), of a
    teacher in another process those that its own interface took; ``memory`` is a ``Peak``'s bytes.
    """
    throughput = rows / seconds if rows and seconds > 0 else None
    return Cost(
        parameters=parameters,
        bytes_on_disk=None if folder is None else bytes_on_disk(folder),
        peak_memory=memory or None,
        latency=percentiles(latencies),
        latency_rows=len(latencies),
        throughput=throughput,
        batch_size=batch_size,
        rows=rows,
        seconds=seconds,
        cost_per_1000=cost_per_1000(price_per_hour, throughput),
    )
