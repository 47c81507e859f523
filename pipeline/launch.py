"""A training in several processes: on this machine by torch's launcher, elsewhere and otherwise as accelerate's own file says.

    launch(job, folder, processes=2, accelerate=None)     # python -m pipeline.training_process checkpoints-student/job.json, twice

What one of them raises is raised here too. Limits: what the processes print goes to this one's standard error; only the first of them
prints progress.
"""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

from pipeline.files import InputError, RunError, atomic, strict_json, write_json

JOB = "job.json"
PROBLEM = "problem.json"
PROCESS = "pipeline.training_process"
ACCELERATE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback
runpy.run_module("accelerate.commands.launch", run_name="__main__", alter_sys=True)
"""


def launch(job: bytes, folder: Path, processes: int, accelerate: Path | None) -> None:
    """Start ``processes`` that each read ``job`` (left in ``folder``), and wait for them.

    ``accelerate``: a file of settings for `accelerate launch`; its number of processes counts where ``processes`` is 1. Raises InputError
    or RunError as one of them does, and RunError where one fails otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROBLEM).unlink(missing_ok=True)
    with atomic(folder / JOB) as file:
        file.write(job)
    cores = max(1, (os.cpu_count() or 1) // processes)
    environment = {"OMP_NUM_THREADS": str(cores), **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = ["-m", PROCESS, str(folder / JOB)]
    code = _here(told, processes, environment) if accelerate is None else _by(accelerate, told, processes, environment)
    if code and (folder / PROBLEM).is_file():
        problem = strict_json((folder / PROBLEM).read_bytes())
        raise (InputError if problem["input"] else RunError)(problem["said"])
    if code:
        raise RunError(f"train: its processes ended with exit code {code}; what they said stands above")


def _here(told: list[str], processes: int, environment: dict[str, str]) -> int:
    """By torch's own launcher, which ends all when one fails. The exit code of the first that failed, 0 if none did."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
        run_id=str(os.getpid()),
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what failed is said by who failed
    before = {**os.environ}
    os.environ.update(environment)
    try:
        elastic_launch(settings, sys.executable)(*told)
    except ChildFailedError as error:
        return int(min(failure.exitcode for failure in error.failures.values())) or 1
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        return 128 + int(error.sigval)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return 0


def _by(accelerate: Path, told: list[str], processes: int, environment: dict[str, str]) -> int:
    command = [sys.executable, "-c", ACCELERATE, "--config_file", str(accelerate)]
    command += ["--num_processes", str(processes)] if processes > 1 else []
    with subprocess.Popen([*command, *told], env=environment) as running:
        try:
            return running.wait()
        except BaseException:
            running.terminate()
            raise


def leave(problem: InputError | RunError, folder: Path) -> None:
    """Leave in ``folder`` what stopped one of the processes."""
    write_json(folder / PROBLEM, {"input": isinstance(problem, InputError), "said": str(problem)})
