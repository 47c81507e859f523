"""Changes the code in small ways, one at a time, and counts which changes the tests notice. Run by `make mutants`.

mutmut makes the changes ("mutants") and runs, for each, the tests that reach the changed function. This wrapper gives it a copy of the
code in build/mutants/<group>, since a mutant is chosen per function and mutmut leaves decorated functions alone: there,

    @contextmanager                      def atomic(path): ...
    def atomic(path): ...         is     atomic = contextmanager(atomic)

and `lru_cache` is left away, because what was remembered before a change would hide it. Then it draws the sample of the group (the same
for the same code), runs what is not known to be noticed, and writes the table in docs/mutants.md.

    python scripts/mutants.py                      every group; goes on where it was stopped (remove build/mutants to begin anew)
    python scripts/mutants.py files responses      these groups
    python scripts/mutants.py --sample 50 audit    so many of each, in place of what GROUPS says; a larger sample begins with a smaller one
    python scripts/mutants.py --show files         the differences that no test noticed

Limits: code outside of functions (constants, regular expressions, tables) is not changed, and only the tests named in GROUPS are run:
the fast ones. What they miss may well be noticed by the others.
"""

import argparse
import ast
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "mutants.md"
BUILD = ROOT / "build" / "mutants"
BEGIN, END = "<!-- figures: written by scripts/mutants.py -->\n", "<!-- /figures -->"
COPIED = ("tests", "prompts", "data", "examples", "docs", "scripts", "stages.yaml", "README.md", "CHANGELOG.md")
SEED = 0
KILLED, TIMEOUT, UNTESTED = (1, 3), (-24, 24, 36, 152, 255), (5, 33)  # exit codes as mutmut keeps them
# Files keep their times, or numba would compile everything anew each time.
MUTMUT = "import shutil; shutil.copy = shutil.copy2; import mutmut.__main__ as mutmut"
KEPT_APART = {"contextmanager", "property"}  # decorators that are put behind the function


@dataclass(frozen=True)
class Group:
    """Modules that are changed together, the tests that are run, and how many mutants are drawn (all, where that is None)."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]
    sample: int | None = None


def tests(file: str, names: str) -> tuple[str, ...]:
    """The named tests of one file."""
    return tuple(f"tests/{file}.py::{name}" for name in names.split())


def without(file: str, names: str) -> tuple[str, ...]:
    """What leaves out the named tests of one file: those that start processes, or take seconds."""
    return tuple(f"--deselect={test}" for test in tests(file, names))


GROUPS = {
    "files": Group(
        ("pipeline/files.py",),
        (
            "tests/test_files.py",
            *tests(
                "test_secrets",
                "test_user_information_goes test_parameters_that_are_keys_go test_what_is_private_already_stays_as_it_is "
                "test_ordinary_settings_stay test_each_way_of_writing_a_name_or_a_secret",
            ),
            *tests(
                "test_responses",
                "test_a_second_writer_is_turned_away_at_once test_a_lock_file_of_a_dead_process_holds_nothing "
                "test_a_child_of_a_killed_writer_holds_nothing",
            ),
        ),
    ),
    "responses": Group(
        ("pipeline/responses.py",),
        (
            "tests/test_responses.py",
            *without(
                "test_responses",
                "test_compacting_can_be_killed_at_any_line "  # looks at names of functions
                "test_a_full_disk_leaves_the_store_whole test_compacting_on_a_full_disk_leaves_the_store_as_it_was "  # processes
                "test_a_second_writer_is_turned_away_at_once test_a_child_of_a_killed_writer_holds_nothing "
                "test_it_can_be_asked_while_another_thread_appends test_one_changed_byte_anywhere_is_found_and_named",
            ),
        ),
    ),
    "runner": Group(
        ("pipeline/runner.py",),
        (
            "tests/test_run.py",
            *without(
                "test_run",  # these import libraries for data sets
                "test_rows_of_a_stage_are_a_dataset test_shards_load_as_they_are test_other_kinds_of_sources_give_the_same_rows",
            ),
            *tests(
                "test_shift",
                "test_each_stage_leaves_the_counts_of_what_it_kept test_what_a_judge_drops_is_counted "
                "test_the_warning_stands_on_the_command_line_once",
            ),
            *tests("test_terms", "test_where_nothing_would_be_trained_no_reason_is_asked"),
            *tests("test_processes", "test_settings_and_options_say_how_many"),
        ),
        300,
    ),
    "audit": Group(  # what lies there, bytes, rows that come and go, the store, the way back
        (
            "pipeline/audit.py",
            *(f"pipeline/audits/{name}.py" for name in "__init__ chain files laws places rows store".split()),
        ),
        (
            "tests/test_audit.py",
            *without("test_audit", "test_any_changed_byte_is_found_and_its_file_named"),  # 150 audits
            "tests/test_findings.py",
        ),
        150,
    ),
    "audits": Group(  # what they say, and everything made again
        tuple(
            f"pipeline/audits/{name}.py"
            for name in "answers checkpoint derivation exports figures inputs manifests outcomes revoked scan settings "
            "signature sweeps terms verdicts".split()
        ),
        (
            "tests/test_audit.py",
            "tests/test_audit_full.py",
            "tests/test_findings.py",
            *without("test_audit", "test_any_changed_byte_is_found_and_its_file_named"),
        ),
        150,
    ),
}


def main() -> None:
    """Run the groups named, or show what they left."""
    parser = argparse.ArgumentParser(
        description="Changes the code in small ways and counts which changes the tests notice."
    )
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}; all, where none is named")
    parser.add_argument("--sample", type=int, help="so many mutants of each group")
    parser.add_argument("--show", action="store_true", help="only print the differences that no test noticed")
    asked = parser.parse_args()
    if unknown := [name for name in asked.groups if name not in GROUPS]:
        parser.error(f"{unknown[0]}: no such group; the groups are {', '.join(GROUPS)}")
    for name in asked.groups or GROUPS:
        if asked.show:
            shown(name)
        else:
            group = GROUPS[name]
            work(name, replace(group, sample=asked.sample) if asked.sample else group)


def work(name: str, group: Group) -> None:
    """Make the mutants of a group, run those that are not known to be noticed, and write what came of it."""
    folder = BUILD / name
    began = time.monotonic()
    prepare(folder, group)
    made(folder)
    results = read_results(folder)
    drawn = sampled(results, group.sample)
    waiting = [mutant for mutant in drawn if results[mutant] not in KILLED]
    print(f"mutants: {name}: {len(drawn)} of {len(results)} mutants, {len(waiting)} to run", flush=True)
    while waiting:
        command = [sys.executable, "-c", f"{MUTMUT}; mutmut.cli()", "run", "--max-children", "1", *waiting]
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run(command, cwd=folder, env=surroundings, check=False)
        results = read_results(folder)
        unrun = [mutant for mutant in drawn if results[mutant] is None]
        if done.returncode or (unrun and set(waiting) <= set(unrun)):
            sys.exit(f"mutants: {name}: mutmut ended with {done.returncode} and left {len(unrun)} mutants")
        waiting = unrun  # other tests than last time: mutmut has forgotten what it knew
    minutes = (time.monotonic() - began) / 60
    facts = {
        "drawn": {mutant: results[mutant] for mutant in drawn},
        "made": made_by_module(results),
        "minutes": minutes,
    }
    (folder / "figures.json").write_text(json.dumps(facts, indent=1) + "\n")
    write_table()
    print(f"mutants: {name}: {dict(Counter(verdict(results[mutant]) for mutant in drawn))} in {minutes:.0f} min")


def prepare(folder: Path, group: Group) -> None:
    """A copy of the code, in which each function can be changed, with mutmut's settings; files that are there already keep their times."""
    modules = [path.relative_to(ROOT) for pattern in group.modules for path in sorted(ROOT.glob(pattern))]
    for path in sorted((ROOT / "pipeline").rglob("*")):
        relative = path.relative_to(ROOT)
        if relative in modules:
            copied(folder / relative, undecorated(path.read_text()).encode())
        elif path.suffix in (".nbi", ".nbc"):  # what numba compiled
            if not (folder / "mutants" / relative).exists():
                copied(folder / "mutants" / relative, path.read_bytes())
        elif path.is_file() and "__pycache__" not in relative.parts:
            copied(folder / relative, path.read_bytes())
            shutil.copystat(path, folder / relative)
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.rmtree(folder / name, ignore_errors=True)
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    settings = {
        "source_paths": ["pipeline"],
        "only_mutate": [str(module) for module in modules],
        "also_copy": list(COPIED),
        "pytest_add_cli_args_test_selection": list(group.tests),
        "pytest_add_cli_args": [
            *("-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin", "--hypothesis-profile=mutants"),
            f"--basetemp={folder / 'tmp'}",
        ],
        "timeout_multiplier": 4.0,
        "timeout_constant": 4.0,
        "use_git_change_detection": False,
        "track_dependencies": False,
        "on_dependency_change": "ignore",
    }
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items()]
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + "\n[tool.mutmut]\n" + "".join(lines))


def copied(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def undecorated(code: str) -> str:
    """The code with decorators of KEPT_APART behind the functions, and without `lru_cache`."""
    lines = code.split("\n")
    for node in sorted(ast.walk(ast.parse(code)), key=lambda node: -getattr(node, "lineno", 0)):
        if not isinstance(node, ast.FunctionDef) or len(node.decorator_list) != 1:
            continue
        decorator = ast.unparse(node.decorator_list[0])
        if decorator in KEPT_APART:
            assert node.end_lineno is not None
            lines.insert(node.end_lineno, f"{' ' * node.col_offset}{node.name} = {decorator}({node.name})")
        if decorator in KEPT_APART or decorator.startswith("lru_cache("):
            del lines[node.decorator_list[0].lineno - 1]
    return "\n".join(lines)


def made(folder: Path) -> None:
    """Let mutmut write its mutants, which it does not do again for files that are as they were."""
    code = f"{MUTMUT}; mutmut.copy_src_dir(); mutmut.copy_also_copy_files(); mutmut.create_mutants(1)"
    (folder / "mutants").mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def read_results(folder: Path) -> dict[str, int | None]:
    """Each mutant's exit code, None where it was not run."""
    results: dict[str, int | None] = {}
    for path in sorted((folder / "mutants" / "pipeline").rglob("*.meta")):
        results |= json.loads(path.read_text())["exit_code_by_key"]
    return results


def sampled(results: Iterable[str], number: int | None) -> list[str]:
    """So many of them, the same each time, and of a larger sample the first; all where that is None."""
    names = sorted(results)
    random.Random(SEED).shuffle(names)
    return sorted(names[:number])


def verdict(code: int | None) -> str:
    """What an exit code says of a mutant."""
    if code is None:
        return "not run"
    if code in KILLED:
        return "killed"
    if code in TIMEOUT:
        return "timeout"
    return "no tests" if code in UNTESTED else "survived"


def module(mutant: str) -> str:
    """The file that a mutant is in: ``pipeline.audits.store.x_check__mutmut_3`` is in ``pipeline/audits/store.py``."""
    place = mutant.rpartition(".")[0].replace(".", "/")
    return f"{place}/__init__.py" if (ROOT / place).is_dir() else f"{place}.py"


def made_by_module(results: Iterable[str]) -> dict[str, int]:
    """How many mutants there are in each file."""
    return dict(Counter(map(module, results)))


def write_table() -> None:
    """The table of docs/mutants.md anew, from what the groups left."""
    lines = [
        "| module | mutants | run | killed | time run out | survived | no test | killed of those run |",
        "|---|" + "---:|" * 7,
    ]
    for name in GROUPS:
        path = BUILD / name / "figures.json"
        if not path.exists():
            continue
        facts = json.loads(path.read_text())
        rows = {place: [mutant for mutant in facts["drawn"] if module(mutant) == place] for place in facts["made"]}
        for place, mutants in rows.items():
            lines.append(row(place, facts["made"][place], [facts["drawn"][mutant] for mutant in mutants]))
        if len(rows) > 1:
            lines.append(row(f"**{name}, all**", sum(facts["made"].values()), list(facts["drawn"].values())))
    lines.append(f"\nRun on {platform.machine()} with Python {platform.python_version()}, one process.")
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after)


def row(name: str, mutants: int, codes: list[int | None]) -> str:
    """One line of the table. What ran out of its time was noticed: it counts as killed in the share."""
    found = Counter(map(verdict, codes))
    counted = len(codes) - found["not run"]
    share = f"{(found['killed'] + found['timeout']) / counted:.1%}" if counted else ""
    figures = (mutants, counted, found["killed"], found["timeout"], found["survived"], found["no tests"], share)
    return f"| {name} | {' | '.join(map(str, figures))} |"


def shown(name: str) -> None:
    """Print the difference of each mutant of a group that no test noticed."""
    from mutmut.mutation.diff_apply import find_mutant, get_diff_for_mutant

    os.chdir(BUILD / name)
    drawn = json.loads(Path("figures.json").read_text())["drawn"] if Path("figures.json").exists() else {}
    for mutant, code in read_results(Path()).items():
        if (mutant in drawn or not drawn) and verdict(code) in ("survived", "no tests"):
            print(f"# {mutant}: {verdict(code)}")
            print(get_diff_for_mutant(mutant, path=find_mutant(mutant).path))


if __name__ == "__main__":
    main()
