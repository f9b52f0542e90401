"""Plant faults in the library, one at a time, and see which of them its own tests find.

A seeded sample of small changes (a sign, a comparison, a default, an axis, a dropped clamp, another
generator, a narrower dtype, ...) is drawn over ``companion/``. For each, the tests of its module
run in a copy of the checkout until one fails. Those that none finds are named: each is a line that
nothing holds in place, or a change that changes nothing.

Packages were tried first. Cosmic Ray changes files in the checkout, knows one test command a
session and none of the kinds of change below but the first three; mutmut rewrites functions so
that their signatures, decorators and compilation are no longer those of the library.
"""

import argparse
import ast
import compileall
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "book" / "_data" / "mutants.json"
COMPARE = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
ARITHMETIC = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Pow: "*", ast.FloorDiv: "*",
    ast.BitAnd: "|", ast.BitOr: "&",
}  # fmt: skip
SWAP = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "amin": "amax",
    "amax": "amin", "argmin": "argmax", "argmax": "argmin", "mean": "sum", "sum": "mean",
    "cumsum": "cumprod", "floor": "ceil", "ceil": "floor", "log": "log1p", "exp": "expm1",
    "double": "float", "float64": "float32", "all": "any", "any": "all",
}  # fmt: skip
# Calls that may go: x.clamp(...) becomes x, and wide(x) becomes x.
DROP = {"clamp", "clamp_min", "clamp_max", "detach", "abs", "sqrt", "masked_fill", "contiguous"}
# What is shown to people, and what is no code: a change there is no fault of the kind we look for.
SHOWN = {"__repr__", "extra_repr", "__str__"}
# What many tests import, and what takes its time. Not transformers: after it, no tests run.
_SLOW_TO_IMPORT = (
    "torch", "scipy.optimize", "scipy.special", "scipy.stats", "sklearn.metrics", "sympy", "gensim",
    "nltk.lm", "matplotlib.figure",
)  # fmt: skip


_copy = ROOT  # in a worker its own copy
_sound: dict[str, bool] = {}  # which tests pass in it without a fault, as far as that was asked
_seconds: dict[str, float] = {}  # what tests have taken in it, all cases of a function together


class _Clock:
    """A plugin of pytest that notes what each test takes."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes.open("w", encoding="utf-8")

    def pytest_runtest_logreport(self, report: Any) -> None:
        print(report.duration, report.nodeid.partition("[")[0], file=self.notes, flush=True)


@dataclass(frozen=True)
class Mutant:
    """One change: text of a file from ``start`` to ``end`` replaced."""

    path: str
    line: int
    kind: str
    before: str
    after: str
    start: int
    end: int
    within: str


def mutants_of(path: Path, root: Path = ROOT) -> list[Mutant]:
    """All changes of one file."""
    source = path.read_text(encoding="utf-8")
    found: list[Mutant] = []
    name = path.relative_to(root).as_posix()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    raw = source.encode()

    def at(line: int, column: int) -> int:
        return starts[line - 1] + column

    def text(node: Any) -> tuple[int, int, str]:
        start, end = at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)
        return start, end, raw[start:end].decode()

    def put(node: Any, kind: str, after: str, within: str, span: Any = None) -> None:
        start, end = span or text(node)[:2]
        before = raw[start:end].decode()
        if before != after:
            found.append(Mutant(name, node.lineno, kind, before, after, start, end, within))

    def visit(node: ast.AST, within: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if node.name in SHOWN or any("overload" in ast.unparse(d) for d in node.decorator_list):
                return
            within = within or node.name
        if isinstance(node, ast.FunctionDef):
            for default in [*node.args.defaults, *node.args.kw_defaults]:
                if isinstance(default, ast.Constant):
                    constant(default, "default", within)
            for statement in node.body:
                visit(statement, within)
            return
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                visit(node.value, within)
            return
        if not within:  # at the level of a module only functions and classes are looked into
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.FunctionDef | ast.ClassDef):
                    visit(child, within)
            return
        change(node, within)
        for child in ast.iter_child_nodes(node):
            visit(child, within)

    def constant(node: ast.Constant, kind: str, within: str) -> None:
        value = node.value
        if value is True or value is False:
            put(node, kind, str(not value), within)
        elif isinstance(value, int):
            put(node, kind, str(value + 1), within)
        elif isinstance(value, float):
            put(node, kind, repr(value * 2) if value else "1.0", within)

    def change(node: ast.AST, within: str) -> None:
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            after = COMPARE[type(node.ops[0])]
            span = (text(node.left)[1], text(node.comparators[0])[0])
            if re.fullmatch(rb"[\s<>=!a-z]+", raw[slice(*span)]):
                put(node, "compare", f" {after} ", within, span)
        elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            span = (text(node.left)[1], text(node.right)[0])
            middle = raw[slice(*span)].decode()
            if re.fullmatch(r"[)\s]*[-+*/&|]+[(\s]*", middle):
                after = re.sub(r"[-+*/&|]+", ARITHMETIC[type(node.op)], middle)
                put(node, "arithmetic", after, within, span)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
            kind = "sign" if isinstance(node.op, ast.USub) else "boolean"
            put(node, kind, text(node.operand)[2], within)
        elif isinstance(node, ast.BoolOp):
            span = (text(node.values[0])[1], text(node.values[1])[0])
            middle = raw[slice(*span)].decode()
            other = {"and": "or", "or": "and"}
            put(
                node,
                "boolean",
                re.sub(r"\b(and|or)\b", lambda m: other[m[0]], middle),
                within,
                span,
            )
        elif isinstance(node, ast.Constant):
            constant(node, "constant", within)
        elif isinstance(node, ast.If | ast.IfExp | ast.While):
            put(node.test, "condition", f"not ({text(node.test)[2]})", within)
        elif isinstance(node, ast.keyword):
            if node.arg in ("dim", "axis") and isinstance(node.value, ast.Constant | ast.UnaryOp):
                put(node.value, "axis", "0" if text(node.value)[2] != "0" else "-1", within)
            if node.arg == "generator" and isinstance(node.value, ast.Name):
                put(node.value, "generator", "torch.Generator().manual_seed(0)", within)
        elif isinstance(node, ast.Call):
            called(node, within)
        elif isinstance(node, ast.AugAssign) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        ):
            put(node, "statement", "pass", within)
        elif isinstance(node, ast.Return) and isinstance(
            node.value, ast.BinOp | ast.Call | ast.Name
        ):
            put(node.value, "return", f"-({text(node.value)[2]})", within)
        elif isinstance(node, ast.Attribute) and text(node)[2] in (
            "torch.float32",
            "torch.float64",
        ):
            put(node, "dtype", "torch.bfloat16" if "32" in node.attr else "torch.float32", within)

    def called(node: ast.Call, within: str) -> None:
        function = node.func
        called_name = getattr(function, "attr", getattr(function, "id", ""))
        if called_name in SWAP:
            start, end, whole = text(function)
            put(node, "swap", whole[: -len(called_name)] + SWAP[called_name], within, (start, end))
        if isinstance(function, ast.Attribute) and called_name in DROP:
            put(node, "drop", text(function.value)[2], within)
        if called_name in ("wide", "to") and isinstance(function, ast.Name) and len(node.args) == 1:
            put(node, "dtype", text(node.args[0])[2], within)
        if called_name == "promote_types":
            put(node, "dtype", text(node.args[0])[2], within)

    visit(ast.parse(source), "")
    # One place may be named twice, by an expression and the statement that it is.
    return list({(m.start, m.end, m.after): m for m in found}.values())


def tests_of(path: str, root: Path) -> list[Path]:
    """The tests of a module: those of its chapter's name, or of its whole wing; and the laws."""
    _, part, *rest = Path(path).with_suffix("").parts
    folder = root / "tests" / part
    stem = rest[0] if rest else part
    if not rest:  # beside the parts, and tested in one of them
        own = sorted((root / "tests").glob(f"*/test_{stem.strip('_')}.py"))
        return [*own, *sorted((root / "tests" / "laws").glob("test_*.py"))]
    own = [*folder.glob(f"test_{stem}.py"), *folder.glob(f"test_{stem}_*.py")]
    topic = rest[-1].strip("_") if rest else stem
    own = sorted(own or folder.glob("test_*.py"), key=lambda p: (topic not in p.stem, p.name))
    return [*own, *sorted((root / "tests" / "laws").glob("test_*.py"))]


def chosen(mutant: Mutant, root: Path) -> tuple[list[str], list[str]]:
    """The tests that name what was changed, or what is built on it; and the other ones."""
    tree = ast.parse((root / mutant.path).read_text(encoding="utf-8"))
    bodies = {
        node.name: {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    names, grew = {mutant.within}, True
    while grew:
        more = {name for name, used in bodies.items() if used & names} - names
        names, grew = names | more, bool(more)
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, sorted(names))) + r")\b")
    first, rest = [], []
    for path in tests_of(mutant.path, root):
        source = path.read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                segment = ast.get_source_segment(source, node) or ""
                where = first if pattern.search(segment) else rest
                where.append(f"{path.relative_to(root).as_posix()}::{node.name}")
    return first, rest


def _run_tests(copy: str, tests: list[str], log: str) -> None:
    """Run tests in this process, which was forked for them, and end it with what pytest says."""
    os.chdir(copy)
    sys.path.insert(0, copy)
    os.environ["PYTHONPATH"] = copy  # for the processes that tests start
    sys.dont_write_bytecode = False  # tests do not change: pytest keeps them as it rewrites them
    with open(log, "w", encoding="utf-8") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        sys.stdout = sys.stderr = out
        # Some libraries take a process of another name for one of a data loader's.
        multiprocessing.current_process().name = "MainProcess"
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider"]
        code = int(
            pytest.main([*options, *tests], plugins=[_Clock(Path(log).with_name("took.txt"))])
        )
        out.flush()
        os._exit(code)


def _settle(free: Any) -> None:
    """Give a worker a copy of its own."""
    global _copy
    _copy = free.get()


def _outcome(tests: list[str], limit: float) -> tuple[int | None, str]:
    """The exit code of the tests in this worker's copy, ``None`` after the limit, and the log."""
    log, took = _copy / "log.txt", _copy / "took.txt"
    took.write_text("", encoding="utf-8")
    # Quick ones first: most faults are found by several. Those that never ran are taken for quick.
    tests = sorted(tests, key=lambda test: _seconds.get(test, 0.0))
    process = multiprocessing.get_context("fork").Process(
        target=_run_tests, args=(str(_copy), tests, str(log))
    )
    process.start()
    process.join(limit)
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    passed = dict[str, float]()
    for line in took.read_text(encoding="utf-8").splitlines():
        seconds, _, test = line.partition(" ")
        passed[test] = passed.get(test, 0.0) + float(seconds)
    for test, seconds in passed.items():  # a failure cuts a test short
        _seconds[test] = max(seconds, _seconds.get(test, 0.0))
    if late:
        return None, ""
    return process.exitcode, log.read_text("utf-8", "replace")


def judge(mutant: Mutant, *, limit: float) -> tuple[str, float, str]:
    """Plant one fault in the copy of this worker, run the tests, and take it out again."""
    target = _copy / mutant.path
    whole = target.read_bytes()
    began = time.monotonic()
    # The tests are chosen by what the file says, so before it is changed.
    groups = [tests for tests in chosen(mutant, _copy) if tests]
    target.write_bytes(whole[: mutant.start] + mutant.after.encode() + whole[mutant.end :])
    try:
        for tests in groups:
            code, log = _outcome(tests, max(limit - (time.monotonic() - began), 1))
            if code is None:
                return "timeout", time.monotonic() - began, ""
            if code != 0:
                failed = re.search(r"^(?:FAILED|ERROR) ([^\s\[]+)", log, re.M)
                # The name of a parametrized test may hold spaces: the function will do.
                by = failed[1] if failed else f"exit {code}: {log[-400:]}"
                break
        else:
            return "survived", time.monotonic() - began, ""
    finally:
        target.write_bytes(whole)
    # A control: what found the fault must pass where there is none.
    if failed and by not in _sound:
        _sound[by] = _outcome([by], limit)[0] == 0
    verdict = "found" if failed and _sound[by] else "unsound"
    return verdict, time.monotonic() - began, by


@contextlib.contextmanager
def copies(count: int) -> Iterator[list[Path]]:
    """Copies of what git knows of the checkout, changed files included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        made = [Path(folder) / str(k) for k in range(count)]
        for copy in made:
            for name in filter(None, listed.stdout.split("\0")):
                if (ROOT / name).is_file():
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, copy / name)
            # Compiled once. What is known by its text and not by its time of change is never stale.
            compileall.compile_dir(
                copy / "companion", quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH
            )
        yield made


def progress_file(seed: int) -> Path:
    """Where a run notes what it has found: another file for another seed or another library."""
    library = hashlib.sha256()
    for path in sorted((ROOT / "companion").rglob("*.py")):
        library.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return ROOT / "_build" / "mutants" / f"{seed}-{library.hexdigest()[:16]}.jsonl"


def noted(progress: Path) -> dict[Mutant, str]:
    """The faults that an earlier run found, each with the test that found it."""
    if not progress.is_file():
        return {}
    rows = map(json.loads, progress.read_text(encoding="utf-8").splitlines())
    return {Mutant(**row["mutant"]): row["by"] for row in rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=40, help="how many faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="companion", help="paths that start with this, by comma")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one fault")
    parser.add_argument(
        "--go-on",
        action="store_true",
        help="keep what an earlier run found in the same library, and judge only the rest: after"
        " a run that was stopped, or with new tests",
    )
    asked = parser.parse_args()
    only = tuple(asked.only.split(","))
    every = [
        mutant
        for path in sorted((ROOT / "companion").rglob("*.py"))
        if path.relative_to(ROOT).as_posix().startswith(only)
        for mutant in mutants_of(path)
    ]
    if not every:
        print(f"no file of the library starts with {asked.only!r}")
        return 2
    sample = random.Random(asked.seed).sample(every, min(asked.n, len(every)))
    print(f"{len(sample)} of {len(every)} possible faults, seed {asked.seed}", flush=True)
    progress = progress_file(asked.seed)
    progress.parent.mkdir(parents=True, exist_ok=True)
    if not asked.go_on:
        progress.unlink(missing_ok=True)
    kept = noted(progress)
    waiting_for = [mutant for mutant in sample if mutant not in kept]
    found, others = len(sample) - len(waiting_for), list[dict[str, Any]]()
    if found:
        print(f"{found} of them were found by an earlier run", flush=True)
    # Imported once, before the forks. Not the library, of which each copy has its own, and not
    # what pytest wants to import itself.
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    sys.dont_write_bytecode = True
    sys.path[:] = [p for p in sys.path if p and Path(p).resolve() != ROOT]
    for module in _SLOW_TO_IMPORT:
        __import__(module)
    context = multiprocessing.get_context("fork")
    with copies(asked.jobs) as places, progress.open("a", encoding="utf-8") as notes:
        free = context.SimpleQueue()
        for place in places:
            free.put(place)
        with ProcessPoolExecutor(asked.jobs, context, _settle, (free,)) as pool:
            waiting = {pool.submit(judge, m, limit=asked.limit): m for m in waiting_for}
            for done in as_completed(waiting):
                mutant, (verdict, seconds, by) = waiting[done], done.result()
                if verdict == "found":
                    print(json.dumps({"mutant": asdict(mutant), "by": by}), file=notes, flush=True)
                if verdict in ("found", "timeout"):
                    found += 1
                else:
                    shown = {k: v for k, v in asdict(mutant).items() if k not in ("start", "end")}
                    others.append({"verdict": verdict, **shown})
                change = f"{mutant.kind}: {mutant.before!r} -> {mutant.after!r}"
                print(
                    f"{found + len(others):4}/{len(sample)} {verdict:8} {seconds:4.0f} s  "
                    f"{mutant.path}:{mutant.line} {change}  {by}",
                    flush=True,
                )
    others.sort(key=lambda row: (row["path"], row["line"]))
    print(f"\n{found} of {len(sample)} found ({found / len(sample):.1%}); not found:")
    for row in others:
        change = f"{row['kind']}: {row['before']} -> {row['after']}"
        print(f"  {row['verdict']} {row['path']}:{row['line']} in {row['within']}, {change}")
    if asked.only == "companion":
        record = {"seed": asked.seed, "possible": len(every), "planted": len(sample)}
        record |= {"found": found, "others": others}
        STORED.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"stored in {STORED.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
