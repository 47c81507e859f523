"""The commands, by what they are about; each imports what it needs when it runs, so that `--help` is there at once."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, help=(
    "From a file of inputs to a small model you can trust: a teacher writes labels and rationales, the pipeline keeps what holds up, "
    "a student learns both, and every trained row leads back to the response it came from."
))  # fmt: skip

ConfigOption = Annotated[Path, typer.Option("-c", "--config", help="the settings file")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for a program")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="stage.knob=value, for this call only", metavar="KNOB=VALUE")
]
DEFAULT = Path("stages.yaml")
