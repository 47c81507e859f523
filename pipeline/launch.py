"""A training in several processes: on this machine by torchrun, elsewhere and otherwise as accelerate's own file says.

    python -m torch.distributed.run --nproc-per-node 2 -m pipeline.training_process checkpoints-student/job.json

Limits: what the processes print goes to this one's standard error; only the first of them prints progress.
"""

import os
import subprocess
import sys
from pathlib import Path

from pipeline.files import RunError, atomic

JOB = "job.json"
PROCESS = "pipeline.training_process"


def launch(job: bytes, folder: Path, processes: int, accelerate: Path | None) -> None:
    """Start ``processes`` that each read ``job`` (left in ``folder``), and wait for them. Raises RunError where one fails.

    ``accelerate``: a file of settings for `accelerate launch`; its number of processes counts where ``processes`` is 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
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
    if code:
        raise RunError(f"train: its processes ended with exit code {code}; what they said stands above")
