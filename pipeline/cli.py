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
    from pipeline.files import InputError, RunError, plain

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        for argument in sys.argv[1:]:
            if not _is_text(argument):
                raise InputError(f"{plain(argument)}: not text in UTF-8; give ids and paths in UTF-8")
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
    except OSError as error:  # a disk that is full, rights that are missing: nothing that a traceback would tell
        told = f"{plain(str(error.filename))}: {error.strerror}; check the path, its rights and the space there"
        print(f"stepdistill: {told if error.filename else plain(str(error))}", file=sys.stderr)
        code = 1
    if code == STOPPED:
        print("stepdistill: stopped; what was finished is kept, run again to go on", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _is_text(argument: str) -> bool:
    """Whether an argument's bytes were text: ids are looked for, and paths printed, as text."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True
