"""What a checkpoint would have run: code of its own, or pickled weights. Neither is ever done; here is how that is said.

    told(error, folder)   "it needs code of its own, which is never run (auto_map in config.json: modeling.Model), .."
    weights(folder)       "it has no weights in safetensors files, and others are not read: ..", or None where it has some

Limits: a checkpoint may name code of its own and yet be known to transformers, which then loads it without: so code is spoken of only where
loading failed.
"""

from pathlib import Path
from typing import Final

from pipeline.files import plain, strict_json

CONFIGS: Final = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
NO_SAFETENSORS: Final = (
    "it has no weights in safetensors files, and others are not read: a .bin file can run code; convert them first"
)


def told(error: BaseException, source: str | Path) -> str | None:
    """Why loading failed, where it did since the checkpoint wants code to be run; None where that was not it."""
    said = str(error)
    wanted = _wanted(Path(source).expanduser())
    asks = "trust_remote_code" in said or "custom code" in said
    if not asks and not (wanted and "Unrecognized" in said):
        return None
    shown = f" ({'; '.join(wanted)})" if wanted else ""
    return (
        f"it needs code of its own, which is never run{shown}, and no setting allows it; "
        "name a model that transformers knows by itself"
    )


def weights(folder: Path) -> str | None:
    """What is wrong with a folder whose weights are no safetensors; None for one that has some, or none at all."""
    if any(folder.glob("*.safetensors")):
        return None
    return NO_SAFETENSORS if any(found for kind in ("*.bin", "*.pt", "*.pth") for found in folder.glob(kind)) else None


def _wanted(folder: Path) -> list[str]:
    found = []
    for name in CONFIGS:
        try:
            config = strict_json((folder / name).read_bytes())
        except (OSError, ValueError):
            continue
        named = config.get("auto_map") if isinstance(config, dict) else None
        if isinstance(named, dict) and named:
            last = [
                item for value in named.values() for item in (value if isinstance(value, list) else [value]) if item
            ]
            found.append(f"auto_map in {name}: {plain(str(last[-1]), 60) if last else '?'}")
    return found
