"""The house rules that a machine can hold: imports point one way, heavy ones stay inside functions, docs are in step with the code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = """
records files foreign limits marks merkle environment progress cluster processes binding outputs text labels shift blocks tokens
minhash overlap
embeddings
embedded terms prompts control responses lineage revocations teachers
differences bars
spending usage sources shots requests workers asking
ingest sample parse dedup decontaminate judge filters quality shard cards balance
losses packing cut formats student adapters generate model_folder encoding trainer fit launch train preview training_process
metrics scores intervals calibration scoring cost faithfulness safety answering nearest gates eval_rows measure
said ask_teachers ask_students evaluate stages
config provenance runner sweep_plot sweeps envelopes student_signatures exports export audits audit signing proofs
damaged response_repair repair push trace revoke resample results recordings report explore predict project
compare viewer printed printed_compare commands cli
""".split()
HEAVY = {
    "torch",
    "vllm",
    "trl",
    "transformers",
    "datasets",
    "pyarrow",
    "scipy",
    "sklearn",
    "numba",
    "numpy",
    "accelerate",
    "cryptography",
    "model_signing",
    "huggingface_hub",
    "mlcroissant",
    "gguf",
    "httpx",
    "starlette",
    "uvicorn",
    "phonenumbers",
    "detect_secrets",
    "requests",
    "pycld2",
    "rich",
    "matplotlib",
    "ray",
    "sentence_transformers",
    "peft",
    "bitsandbytes",
    "rouge_score",
    "sacrebleu",
}
USED_THERE = {
    "trainer.py",
    "losses",
    "tokens.py",
    "minhash.py",
    "embeddings.py",
    "overlap.py",
}  # imported where they are used, never by the table of stages
MODULES = sorted(path for path in (ROOT / "pipeline").rglob("*.py") if "example" not in path.parts)


def room(path: Path) -> str:
    """The place of a module in the order: its own name, or that of the folder of siblings that it stands in."""
    parts = path.relative_to(ROOT / "pipeline").with_suffix("").parts
    return parts[0]


def imported(path: Path, *, top_level: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names} | {node.module}
    return found


def test_every_module_has_its_place_in_the_order() -> None:
    assert {room(path) for path in MODULES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return
    for name in imported(path, top_level=False):
        parts = name.split(".")
        if parts[0] != "pipeline" or len(parts) < 2 or parts[1] not in ORDER:
            continue
        assert parts[1] == here or ORDER.index(parts[1]) < ORDER.index(here), (
            f"{here} imports {parts[1]}, which comes after it"
        )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_imports_stay_where_they_are_used(path: Path) -> None:
    if not {path.name, path.parent.name} & USED_THERE:
        assert not {name.split(".")[0] for name in imported(path, top_level=True)} & HEAVY


def test_the_command_line_starts_without_heavy_imports() -> None:
    code = "import sys, pipeline.cli, pipeline.stages, pipeline.config; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert not set(loaded) & HEAVY


def test_docs_are_in_step_with_the_code() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
