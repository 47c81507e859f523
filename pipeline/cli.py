"""The command line: each command is a thin layer over a function that a notebook can call as well.

Exit codes: 0 done, 1 failed or the audit found something, 2 wrong usage or settings, 130 on Ctrl-C.
"""

import logging
import os
import sys
from typing import Any

import typer

from pipeline.commands import app

# in the order in which `--help` lists their commands
from pipeline.commands import stages as _stages  # isort: skip
from pipeline.commands import provenance as _provenance  # isort: skip
from pipeline.commands import responses as _responses  # isort: skip

COMMANDS = (_stages, _provenance, _responses)
STOPPED = 130  # Ctrl-C
# vLLM warns of what a CPU lacks while it is imported, before it sets up its own logging; its engine's processes import this module first.
logging.getLogger("vllm").setLevel(logging.ERROR)
WrongUsage: Any = typer.BadParameter.__base__  # typer brings click along under one name or another, by release


def main() -> None:
    """Entry point of the ``stepdistill`` command."""
    from pipeline.files import InputError, RunError

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = app(standalone_mode=False) or 0
    except typer.Exit as end:
        code = end.exit_code
    except WrongUsage as error:
        error.show()
        code = error.exit_code
    except (InputError, RunError) as error:
        print(f"stepdistill: {error}", file=sys.stderr)
        code = 2 if isinstance(error, InputError) else 1
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    if code == STOPPED:
        print("stepdistill: stopped; what was finished is kept, run again to go on", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)
