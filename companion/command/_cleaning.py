"""A folder of texts without its duplicates and its rubbish, shard by shard, on any map of tasks.

Each stage is a plain function of one task, handed to a ``map``: the built-in one, that of a pool of
processes, or that of a cluster. A task writes its result as a whole file, and one that is there
already is not done again; so a run that was stopped goes on where it was. What is kept depends on
the documents alone: shards are cut before any worker starts, and the decisions between documents
are made in their order.

Memory: a worker holds one shard, or one document if that is larger. The main process holds numbers
for each document, a few hundred bytes, and for each pair of candidates, and no text.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.core._storage import write_atomically
from companion.knowledge.data_quality import (
    choose_bands,
    jaccard,
    keep_first,
    minhash,
    quality_filters,
    shingles,
)
from companion.knowledge.data_quality._lsh import band_keys, different_pairs, equal_pairs

__all__ = ["Settings", "Summary", "clean_folder"]

#: Folder of what only the cleaning itself needs, hidden inside the output.
WORK = ".clean"

Map = Callable[..., Iterable[Any]]

#: Pairs of candidates that one task compares.
_PAIRS = 20_000

_KEPT, _RULES, _EXACT, _NEAR, _BAD = range(5)
_REASONS = ("kept", "rules", "exact duplicate", "near duplicate", "unreadable")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides which documents are kept.

    Attributes:
        threshold: Jaccard similarity from which on two documents are duplicates; 0 looks for exact
            copies only.
        shingle: Words or characters of a shingle.
        unit: ``"words"`` or ``"characters"``.
        hashes: Length of a signature.
        recall: Probability of finding a pair at the threshold.
        rules: Names of the sets of rules.
        key: Under which name a line of JSON holds its text.
        skip_bad: Whether what cannot be read is dropped and reported, and no error.
        shard_bytes: Text that a worker takes at once.
        seed: Of the hash functions.
    """

    threshold: float = 0.8
    shingle: int = 5
    unit: str = "words"
    hashes: int = 128
    recall: float = 0.95
    rules: tuple[str, ...] = ("gopher_quality", "gopher_repetition")
    key: str = "text"
    skip_bad: bool = False
    shard_bytes: int = 16 << 20
    seed: int = 1


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run did.

    Attributes:
        documents: How many there were.
        kept: How many are left.
        dropped: How many went, by reason.
        failed: How many did not keep to a rule, by rule; a document may fail several.
        bytes_in: Their text, as UTF-8.
        bytes_out: What is left of it.
    """

    documents: int
    kept: int
    dropped: dict[str, int]
    failed: dict[str, int]
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True)
class _Piece:
    """A text file, or a part of a file of lines that begins and ends with a line."""

    path: str
    start: int
    stop: int

    @property
    def lines(self) -> bool:
        return self.path.lower().endswith(".jsonl")


@dataclass(frozen=True)
class _Task:
    """One shard, with all that a worker must know."""

    folder: str
    work: str
    index: int
    pieces: tuple[_Piece, ...]
    settings: Settings

    def file(self, kind: str) -> Path:
        return Path(self.work) / kind / f"{self.index:06d}"


def clean_folder(
    folder: Path,
    out: Path,
    *,
    settings: Settings | None = None,
    map: Map = map,
    note: Callable[[str], object] = lambda text: None,
) -> Summary:
    """Write the documents of a folder that are worth keeping, each once, and why others went.

    A document is a ``.txt`` file or a line of a ``.jsonl`` file. First each is held against the
    rules, then exact copies of an earlier one go, and then near-duplicates of an earlier one that
    is kept. Documents are written as they came, byte for byte.

    Args:
        folder: Where they are.
        out: Receives ``documents/``, ``report.jsonl`` and ``summary.json``.
        settings: What decides; by default that of :class:`Settings`.
        map: A function like the built-in ``map``, which keeps the order: that of a pool of
            processes, or of a cluster whose workers find both folders under the same paths. Under
            Dask that is ``client.get_executor(pure=False).map``: tasks write files, so none may
            be taken for one that was done before.
        note: Is told of the progress.

    Returns:
        The numbers, which are in ``summary.json`` too.

    Raises:
        ValueError: If there is nothing to read, a document cannot be read, the output is not that
            of such a run, or the input has changed since it began.
    """
    settings = settings or Settings()
    work = out / WORK
    tasks = _begin(folder, out, settings, note)
    if (out / "summary.json").is_file():
        note("all is done already: to do it once more, delete --out")
        return Summary(**json.loads((out / "summary.json").read_text(encoding="utf-8")))
    for kind in ("facts", "pairs", "fates", "written"):
        (work / kind).mkdir(exist_ok=True)
    note(f"{len(tasks)} shards to read")
    _all(map, _measure, [t for t in tasks if not t.file("facts").is_dir()], note, "read")
    facts = [_Facts(t.file("facts")) for t in tasks]
    _judge(tasks, facts, settings, work, map, note)
    names = _Names(tasks, facts)
    todo = []
    _, resembled, _ = _fates(work)
    for task, first in zip(tasks, names.first, strict=True):
        if not (task.file("written") / "done.json").is_file():
            of = resembled[first : first + names.counts[task.index]]
            todo.append((task, first, {int(i): names(int(i)) for i in of if i >= 0}))
    _all(map, _write, todo, note, "written")
    return _finish(tasks, out, settings)


def _files(folder: Path, note: Callable[[str], object]) -> list[Path]:
    """What is to be read, in order; says how much is passed over."""

    def refuse(error: OSError) -> None:
        raise ValueError(
            f"the folder {error.filename} cannot be read ({error.strerror}): give yourself the "
            f"right to, or move it out of {folder}"
        )

    found: list[Path] = []
    others = linked = 0
    for root, inner, files in os.walk(folder, onerror=refuse):
        inner[:] = [name for name in inner if not name.startswith(".")]
        linked += sum((Path(root) / name).is_symlink() for name in inner)
        for name in files:
            path = Path(root) / name
            if name.startswith("."):
                continue
            if path.suffix.lower() in (".txt", ".jsonl") and path.is_file():
                found.append(path)
            else:
                others += 1
    if not found:
        raise ValueError(
            f"{folder} holds no .txt or .jsonl file"
            + (f", and {others} of other kinds: unpack or convert them first" if others else "")
        )
    if others:
        note(f"passed over, since only .txt and .jsonl files are read: {others:,} of other kinds")
    if linked:
        note(f"passed over, since links to folders are not followed: {linked:,}")
    return sorted(found)


def _begin(
    folder: Path, out: Path, settings: Settings, note: Callable[[str], object]
) -> list[_Task]:
    """Cut the shards, or take those of the run that is being gone on with."""
    inside, own = folder.resolve(), out.resolve()
    if inside == own or own in inside.parents or inside in own.parents:
        raise ValueError(f"{out} and {folder} lie in each other: choose another --out")
    files = _files(folder, note)
    named = [
        (path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
    ]
    described = {
        "settings": asdict(settings) | {"rules": list(settings.rules)},
        "files": [list(row) for row in named],
    }
    work = out / WORK
    if (work / "settings.json").is_file():
        before = json.loads((work / "settings.json").read_text(encoding="utf-8"))
        if described["settings"] == before["settings"] | {"skip_bad": True}:
            # What was read without an error is the same when errors are passed over.
            before["settings"] = described["settings"]
            write_atomically(work / "settings.json", json.dumps(before))
        for what, word in (("settings", "other settings"), ("files", "another input")):
            if before[what] != described[what]:
                raise ValueError(f"{out} is of a run with {word}: delete it, or choose another one")
    else:
        if out.exists() and any(path.name != WORK for path in out.iterdir()):
            raise ValueError(f"{out} is not empty: choose another --out")
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(work / "settings.json", json.dumps(described))
    shards: list[list[_Piece]] = []
    room = 0
    for name, size, _ in named:
        for piece in _pieces(folder, name, size, settings.shard_bytes):
            taken = piece.stop - piece.start
            if not shards or taken > room:
                shards.append([])
                room = settings.shard_bytes
            shards[-1].append(piece)
            room -= taken
    return [
        _Task(str(folder), str(work), index, tuple(pieces), settings)
        for index, pieces in enumerate(shards)
    ]


def _pieces(folder: Path, name: str, size: int, most: int) -> Iterator[_Piece]:
    if not _Piece(name, 0, size).lines:
        yield _Piece(name, 0, size)
        return
    start = 0
    try:
        file = (folder / name).open("rb")
    except OSError:  # whoever reads the piece says so
        yield _Piece(name, 0, size)
        return
    with file:
        while start < size:
            file.seek(min(start + most, size) - 1)
            file.readline()  # up to the end of the line that lies on the border
            stop = file.tell()
            yield _Piece(name, start, stop)
            start = stop


def _all(
    map: Map, function: Callable[[Any], Any], tasks: Sequence[Any], note: Any, what: str
) -> None:
    every = max(1, len(tasks) // 10)
    for done, _ in enumerate(map(function, tasks), start=1):
        if done % every == 0 or done == len(tasks):
            note(f"{done} of {len(tasks)} {what}")


# --- one shard -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Document:
    """What stands in the input, and its text, or why there is none."""

    raw: bytes
    text: str | None
    line: int
    piece: int
    wrong: str = ""


def _documents(task: _Task) -> Iterator[_Document]:
    for number, piece in enumerate(task.pieces):
        path = Path(task.folder) / piece.path
        try:
            with path.open("rb") as file:
                file.seek(piece.start)
                content = file.read(piece.stop - piece.start)
        except OSError as error:
            yield _Document(b"", None, 0, number, error.strerror or str(error))
            continue
        if len(content) != piece.stop - piece.start:
            raise ValueError(f"{path} has changed since the run began: delete --out, begin anew")
        if not piece.lines:
            text, wrong = _decoded(content)
            yield _Document(content, text, 0, number, wrong)
            continue
        for line, raw in enumerate(io.BytesIO(content)):  # a line ends with a line feed alone
            if raw.strip():
                text, wrong = _from_json(raw, task.settings.key)
                yield _Document(raw, text, line, number, wrong)


def _decoded(content: bytes) -> tuple[str | None, str]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        return None, "it is UTF-16 and no UTF-8" if wide else f"it is no UTF-8 ({error.reason})"
    return (None, "it holds zero bytes") if "\0" in text else (text, "")


def _from_json(raw: bytes, key: str) -> tuple[str | None, str]:
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError):
        return None, "it is no JSON"
    text = told.get(key) if isinstance(told, dict) else None
    if not isinstance(text, str):
        return None, f"it has no text under {key!r}"
    return text, ""


def _measure(task: _Task) -> None:
    """Read a shard and note of each document all that decides about it."""
    torch.set_num_threads(1)
    settings = task.settings
    fates: list[int] = []
    places: list[tuple[int, int]] = []
    sizes: list[int] = []
    digests = bytearray()
    sets: list[Tensor] = []
    failed: dict[int, Any] = {}
    nothing = torch.empty(0, dtype=torch.long)
    for document in _documents(task):
        here = len(fates)
        places.append((document.piece, document.line))
        text = document.text
        if text is None:
            if not settings.skip_bad:
                where = task.pieces[document.piece]
                line = document.line + _line_feeds(Path(task.folder) / where.path, 0, where.start)
                raise ValueError(
                    f"{_name(where, line)} cannot be read: {document.wrong}; mend it and delete "
                    "--out, or give the same command with --skip-bad to drop such documents"
                )
            failed[here] = document.wrong
        else:
            measures = quality_filters(text, rules=settings.rules)
            missed = {
                name: [found.value, found.wanted]
                for name, found in measures.items()
                if not found.passed
            }
            if missed:
                failed[here] = missed
        content = b"" if text is None else text.encode("utf-8", "surrogatepass")
        fates.append(_KEPT if here not in failed else _BAD if text is None else _RULES)
        sizes.append(len(content))
        digests += hashlib.blake2b(content, digest_size=16).digest()
        alive = fates[-1] == _KEPT and settings.threshold > 0 and text is not None
        unit: Any = settings.unit
        sets.append(shingles(text, n=settings.shingle, unit=unit) if alive and text else nothing)
    folder = task.file("facts")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    count = len(fates)
    np.save(unfinished / "fates.npy", np.array(fates, dtype=np.int8))
    np.save(unfinished / "places.npy", np.array(places, dtype=np.int64).reshape(count, 2))
    np.save(unfinished / "sizes.npy", np.array(sizes, dtype=np.int64))
    digest = np.frombuffer(bytes(digests), dtype=np.uint64).reshape(count, 2)
    np.save(unfinished / "digests.npy", digest)
    if settings.threshold > 0:
        signatures = minhash(sets, k=settings.hashes, seed=settings.seed)
        cut = choose_bands(settings.threshold, k=settings.hashes, recall=settings.recall)
        keys = band_keys(signatures, bands=cut.bands, rows=cut.rows)
        np.save(unfinished / "keys.npy", keys.T.contiguous().numpy())
        np.save(unfinished / "shingles.npy", torch.cat([*sets, nothing]).numpy())
    ends = np.cumsum([0, *(len(some) for some in sets)]).astype(np.int64)
    np.save(unfinished / "ends.npy", ends)
    (unfinished / "failed.json").write_text(json.dumps(failed), encoding="utf-8")
    unfinished.rename(folder)


class _Facts:
    """What a shard has left on disk, read as it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str) -> NDArray[Any]:
        path = self.folder / f"{name}.npy"
        try:
            found: NDArray[Any] = np.load(path, mmap_mode="r")
        except ValueError:  # an empty array cannot be mapped
            found = np.load(path)
        return found

    def failed(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "failed.json").read_text("utf-8"))
        return found


# --- between documents ---------------------------------------------------------------------------


def _judge(
    tasks: list[_Task],
    facts: list[_Facts],
    settings: Settings,
    work: Path,
    map: Map,
    note: Callable[[str], object],
) -> None:
    """Decide about every document, and leave the decisions on disk."""
    if (work / "fates" / "judged.json").is_file():
        return
    fates = np.concatenate([np.array(f("fates")) for f in facts])
    of = np.full(len(fates), -1, dtype=np.int64)
    similarity = np.full(len(fates), np.nan)
    digests = np.concatenate([np.array(f("digests")) for f in facts])
    alive = np.flatnonzero(fates == _KEPT)
    _, first, kind = np.unique(digests[alive], axis=0, return_index=True, return_inverse=True)
    original = alive[first[kind.reshape(-1)]]
    copies = original != alive
    fates[alive[copies]] = _EXACT
    of[alive[copies]] = original[copies]
    similarity[alive[copies]] = 1.0
    if settings.threshold > 0:
        pairs = _candidates(facts, torch.from_numpy(fates == _KEPT))
        note(f"{len(pairs):,} pairs to compare")
        counts = np.array([len(f("fates")) for f in facts])
        todo = [
            (tuple(str(f.folder) for f in facts), counts, pairs[start : start + _PAIRS])
            for start in range(0, len(pairs), _PAIRS)
        ]
        found = [np.asarray(values) for values in map(_compare, todo)]
        alike = np.concatenate([np.empty(0), *found])
        chosen = alike >= settings.threshold
        near = torch.from_numpy(pairs[chosen])
        kept = keep_first(near, len(fates)).numpy()
        exact = {
            (int(a), int(b)): s for (a, b), s in zip(pairs[chosen], alike[chosen], strict=True)
        }
        for item in np.flatnonzero(kept >= 0):
            fates[item] = _NEAR
            of[item] = kept[item]
            similarity[item] = exact[(int(kept[item]), int(item))]
    for name, values in (("fates", fates), ("of", of), ("similarity", similarity)):
        write_atomically(work / "fates" / f"{name}.npy", _saving(values))
    write_atomically(work / "fates" / "judged.json", "{}")


def _saving(values: NDArray[Any]) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, values)

    return save


def _fates(work: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    on_disk = _Facts(work / "fates")
    return on_disk("fates"), on_disk("of"), on_disk("similarity")


def _candidates(facts: list[_Facts], alive: Tensor) -> NDArray[np.int64]:
    """Pairs that agree in a band, one band in memory at a time."""
    sizes = np.concatenate([np.diff(f("ends")) for f in facts])
    ids = (alive & torch.from_numpy(sizes > 0)).nonzero()[:, 0]
    pairs = torch.empty(0, 2, dtype=torch.long)
    for band in range(facts[0]("keys").shape[0]):
        keys = torch.from_numpy(np.concatenate([np.array(f("keys")[band]) for f in facts]))
        pairs = different_pairs(torch.cat([pairs, equal_pairs(keys[ids], ids)]))
    return pairs.numpy()


def _compare(
    task: tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.int64]],
) -> NDArray[np.float64]:
    """Exact similarities of some pairs."""
    folders, counts, pairs = task
    first = np.cumsum([0, *counts])
    opened: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}

    def members(item: int) -> Tensor:
        shard = int(np.searchsorted(first, item, side="right")) - 1
        if shard not in opened:
            facts = _Facts(Path(folders[shard]))
            opened[shard] = facts("ends"), facts("shingles")
        ends, flat = opened[shard]
        at = item - int(first[shard])
        return torch.from_numpy(np.array(flat[ends[at] : ends[at + 1]]))

    return np.array([float(jaccard(members(int(a)), members(int(b)))) for a, b in pairs])


# --- what is written -----------------------------------------------------------------------------


class _Names:
    """What a document is called: its file, and its line in it."""

    def __init__(self, tasks: list[_Task], facts: list[_Facts]) -> None:
        self.tasks, self.facts = tasks, facts
        self.counts = [len(f("fates")) for f in facts]
        self.first = np.cumsum([0, *self.counts])[:-1].tolist()
        self._lines: dict[tuple[str, int], int] = {}
        for task in tasks:
            for piece in task.pieces:
                if piece.lines:
                    self._count(Path(task.folder), piece)

    def _count(self, folder: Path, piece: _Piece) -> None:
        """How many lines of its file come before a piece."""
        before = self._lines.setdefault((piece.path, piece.start), 0)
        lines = _line_feeds(folder / piece.path, piece.start, piece.stop)
        self._lines[(piece.path, piece.stop)] = before + lines

    def before(self, task: _Task) -> list[int]:
        return [self._lines.get((p.path, p.start), 0) for p in task.pieces]

    def __call__(self, item: int) -> str:
        shard = int(np.searchsorted(self.first, item, side="right")) - 1
        while self.counts[shard] == 0:
            shard -= 1
        task = self.tasks[shard]
        piece, line = self.facts[shard]("places")[item - self.first[shard]]
        where = task.pieces[int(piece)]
        return _name(where, int(line) + self._lines.get((where.path, where.start), 0))


def _line_feeds(path: Path, start: int, stop: int) -> int:
    """How many lines end in a part of a file; none in one that cannot be read."""
    lines = 0
    try:
        with path.open("rb") as file:
            file.seek(start)
            while start < stop and (block := file.read(min(stop - start, 1 << 20))):
                start += len(block)
                lines += block.count(b"\n")
    except OSError:
        return 0
    return lines


def _name(piece: _Piece, line: int) -> str:
    return f"{piece.path}:{line + 1}" if piece.lines else piece.path


def _write(job: tuple[_Task, int, dict[int, str]]) -> None:
    """Write the documents of a shard that are kept, and a line about each of the others."""
    task, start, names = job
    fates, of, similarity = _fates(Path(task.work))
    folder = task.file("written")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    failed = _Facts(task.file("facts")).failed()
    counts = dict.fromkeys(_REASONS, 0)
    rules: dict[str, int] = {}
    sizes = [0, 0]
    parts: dict[int, list[bytes]] = {}
    lines = []
    for here, document in enumerate(_documents(task)):
        fate = int(fates[start + here])
        size = len((document.text or "").encode("utf-8", "surrogatepass"))
        counts[_REASONS[fate]] += 1
        sizes[0] += size
        piece = task.pieces[document.piece]
        if fate == _KEPT:
            sizes[1] += size
            parts.setdefault(document.piece, []).append(document.raw)
            continue
        told: dict[str, Any] = {
            "document": [piece.path, piece.start, document.line],
            "reason": _REASONS[fate],
        }
        if fate == _BAD:
            told["wrong"] = failed[str(here)]
        elif fate == _RULES:
            told["rules"] = failed[str(here)]
            for name in failed[str(here)]:
                rules[name] = rules.get(name, 0) + 1
        else:
            item = start + here
            told |= {"of": names[int(of[item])], "similarity": round(float(similarity[item]), 6)}
        lines.append(json.dumps(told, ensure_ascii=False))
    for number, kept in parts.items():
        (folder / f"{number:06d}").write_bytes(b"".join(kept))
    _write_lines(folder / "report.jsonl", lines)
    done = {"counts": counts, "rules": rules, "sizes": sizes}
    write_atomically(folder / "done.json", json.dumps(done))


#: Names of files that are no Unicode come out as escapes of JSON.
_ESCAPED = "backslashreplace"


def _write_lines(path: Path, lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    path.write_text(text, encoding="utf-8", errors=_ESCAPED, newline="\n")


def _finish(tasks: list[_Task], out: Path, settings: Settings) -> Summary:
    """Put the shards together, the summary last."""
    facts = [_Facts(t.file("facts")) for t in tasks]
    names = _Names(tasks, facts)
    parts: dict[str, list[Path]] = {}
    for task in tasks:
        for number, piece in enumerate(task.pieces):
            part = task.file("written") / f"{number:06d}"
            if part.is_file():
                parts.setdefault(piece.path, []).append(part)
    for path, files in parts.items():
        target = out / "documents" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, _joining(files))
    done = [json.loads((t.file("written") / "done.json").read_text("utf-8")) for t in tasks]

    def report(path: Path) -> None:
        with path.open("w", encoding="utf-8", errors=_ESCAPED) as file:
            for task in tasks:
                before = {
                    (piece.path, piece.start): lines
                    for piece, lines in zip(task.pieces, names.before(task), strict=True)
                }
                with (task.file("written") / "report.jsonl").open(encoding="utf-8") as lines:
                    for line in lines:
                        told = json.loads(line)
                        name, start, at = told["document"]
                        piece = _Piece(name, start, start)
                        told["document"] = _name(piece, at + before[(name, start)])
                        file.write(json.dumps(told, ensure_ascii=False) + "\n")

    write_atomically(out / "report.jsonl", report)
    counts = {reason: sum(d["counts"][reason] for d in done) for reason in _REASONS}
    failed: dict[str, int] = {}
    for told in done:
        for name, count in told["rules"].items():
            failed[name] = failed.get(name, 0) + count
    summary = Summary(
        documents=sum(counts.values()),
        kept=counts["kept"],
        dropped={reason: counts[reason] for reason in _REASONS[1:] if counts[reason]},
        failed=dict(sorted(failed.items(), key=lambda pair: (-pair[1], pair[0]))),
        bytes_in=sum(d["sizes"][0] for d in done),
        bytes_out=sum(d["sizes"][1] for d in done),
    )
    write_atomically(out / "summary.json", json.dumps(asdict(summary), indent=1))
    for kind in ("facts", "pairs", "fates", "written"):
        shutil.rmtree(out / WORK / kind, ignore_errors=True)
    return summary


def _joining(files: list[Path]) -> Callable[[Path], None]:
    def join(path: Path) -> None:
        with path.open("wb") as target:
            for number, file in enumerate(files):
                content = file.read_bytes()
                target.write(content)
                last = number == len(files) - 1
                if not last and not content.endswith(b"\n"):
                    target.write(b"\n")

    return join
