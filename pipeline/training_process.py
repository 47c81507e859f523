"""What each process of a shared training runs: ``python -m pipeline.training_process JOB``, started by `pipeline.launch`."""

import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a traceback of the imports below would tell nobody anything

from pipeline.files import InputError, RunError
from pipeline.launch import leave
from pipeline.train import share


def main() -> None:
    """Exit code 0 when the model is there, 1 when it is not; what stopped it is left beside the job."""
    job = Path(sys.argv[1])
    first = os.environ.get("RANK", "0") == "0"
    if not first:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # progress and notes are the first one's
    try:
        share(job.read_bytes())
    except (InputError, RunError) as error:
        leave(error, job.parent)
        sys.exit(1)


if __name__ == "__main__":
    main()
