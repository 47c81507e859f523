"""What each process of a shared training runs: ``python -m pipeline.training_process JOB``, started by `pipeline.launch`."""

import os
import sys
from pathlib import Path

from pipeline.files import InputError, RunError
from pipeline.train import share


def main() -> None:
    """Exit code 0 when the model is there, 2 for what cannot be used, 1 for what failed."""
    first = os.environ.get("RANK", "0") == "0"
    if not first:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # progress and notes are the first one's
    try:
        share(Path(sys.argv[1]).read_bytes())
    except (InputError, RunError) as error:
        sys.stderr.write(f"stepdistill: {error}\n")
        sys.exit(2 if isinstance(error, InputError) else 1)


if __name__ == "__main__":
    main()
