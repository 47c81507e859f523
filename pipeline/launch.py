"""A training in several processes: on this machine by torchrun, elsewhere and otherwise as accelerate's own file says.

    python -m torch.distributed.run --nproc-per-node 2 -m pipeline.training_process checkpoints-student/job.json

What one of them raises is raised here too. Limits: what the processes print goes to this one's standard error, and so do torchrun's own
words on a process that failed; only the first of them prints progress.
"""

import os
import subprocess
import sys
from pathlib import Path

from pipeline.files import InputError, RunError, atomic, strict_json, write_json

JOB = "job.json"
PROBLEM = "problem.json"
PROCESS = "pipeline.training_process"


def launch(job: bytes, folder: Path, processes: int, accelerate: Path | None) -> None:
    """Start ``processes`` that each read ``job`` (left in ``folder``), and wait for them.

    ``accelerate``: a file of settings for `accelerate launch`; its number of processes counts where ``processes`` is 1. Raises InputError
    or RunError as one of them does, and RunError where one fails otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROBLEM).unlink(missing_ok=True)
    with atomic(folder / JOB) as file:
        file.write(job)
    if accelerate is None:
        start = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    else:
        start = ["accelerate.commands.launch", "--config_file", str(accelerate)]
        start += ["--num_processes", str(processes)] if processes > 1 else []
    command = [sys.executable, "-m", *start, "-m", PROCESS, str(folder / JOB)]
    cores = max(1, (os.cpu_count() or 1) // processes)
    environment = {"OMP_NUM_THREADS": str(cores), "PYTHONPATH": os.pathsep.join(sys.path), **os.environ}
    with subprocess.Popen(command, env={**environment, "TORCHELASTIC_LOG_LEVEL": "ERROR"}) as running:
        try:
            code = running.wait()
        except BaseException:
            running.terminate()
            raise
    if code and (folder / PROBLEM).is_file():
        problem = strict_json((folder / PROBLEM).read_bytes())
        raise (InputError if problem["input"] else RunError)(problem["said"])
    if code:
        raise RunError(f"train: its processes ended with exit code {code}; what they said stands above")


def leave(problem: InputError | RunError, folder: Path) -> None:
    """Leave in ``folder`` what stopped one of the processes."""
    write_json(folder / PROBLEM, {"input": isinstance(problem, InputError), "said": str(problem)})
