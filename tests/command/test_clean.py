"""``companion clean``: what is kept, what is said about the rest, and runs that are stopped."""

import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from companion import data
from companion.command import _cleaning as cleaning
from companion.command import main
from companion.command._cleaning import Settings, clean_folder
from companion.knowledge.data_quality import near_duplicates

RULES = ("gopher_quality",)


@pytest.fixture(scope="module")
def passages() -> list[str]:
    verses = [verse.text for verse in data.bible_verses()]
    return [" ".join(verses[i : i + 6]) for i in range(0, 240, 6)]


@pytest.fixture
def folder(tmp_path: Path, passages: list[str]) -> Path:
    """Files and lines, with an exact copy, a near copy, a short text and blank lines."""
    root = tmp_path / "texts"
    (root / "sub").mkdir(parents=True)
    for i, text in enumerate(passages[:20]):
        (root / f"{i:02d}.txt").write_text(text, encoding="utf-8")
    words = passages[3].split()
    words[40] = "otherwise"
    (root / "sub" / "copy.txt").write_text(passages[5], encoding="utf-8")
    (root / "sub" / "near.txt").write_text(" ".join(words), encoding="utf-8")
    (root / "sub" / "short.txt").write_text("hello there", encoding="utf-8")
    (root / "sub" / ".hidden.txt").write_text(passages[30], encoding="utf-8")
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(passages[18:])]
    (root / "lines.jsonl").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return root


def told(out: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(row) for row in (out / "report.jsonl").read_text("utf-8").splitlines()]
    assert len({row["document"] for row in rows}) == len(rows)
    return {row["document"]: row for row in rows}


def everything(out: Path) -> dict[str, bytes]:
    """All files of a result that people see."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.relative_to(out).parts[0].startswith(".")
    }


def command(folder: Path, out: Path, *more: str) -> int:
    return main(["clean", str(folder), "--out", str(out), "--rules", "gopher_quality", *more])


def test_copies_and_rubbish_go_and_the_report_says_why(folder, passages, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert command(folder, out) == 0
    rows = told(out)
    assert rows["sub/copy.txt"] == {
        "document": "sub/copy.txt",
        "reason": "exact duplicate",
        "of": "05.txt",
        "similarity": 1.0,
    }
    near = rows["sub/near.txt"]
    assert (near["reason"], near["of"]) == ("near duplicate", "03.txt")
    assert 0.8 <= near["similarity"] < 1
    assert rows["sub/short.txt"]["reason"] == "rules"
    assert rows["sub/short.txt"]["rules"]["gopher_quality.words"] == [2, "50 to 100000"]
    # Lines are counted from 1, blank ones too.
    assert rows["lines.jsonl:1"]["of"] == "18.txt"
    assert rows["lines.jsonl:3"]["of"] == "19.txt"
    assert set(rows) == {
        "sub/copy.txt", "sub/near.txt", "sub/short.txt", "lines.jsonl:1", "lines.jsonl:3",
    }  # fmt: skip
    assert (out / "documents/00.txt").read_bytes() == (folder / "00.txt").read_bytes()
    kept = (out / "documents/lines.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in kept] == list(range(2, 22))
    said = capsys.readouterr().out
    assert "45 documents" in said
    assert "3 dropped: exact duplicate" in said
    assert "1 dropped: near duplicate" in said
    assert "40 kept" in said
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert summary["documents"] == 45
    assert summary["kept"] == 40
    assert sum(summary["dropped"].values()) == 5
    assert summary["bytes_out"] == sum(len(p.encode()) for p in passages)


def test_nothing_is_lost_every_document_is_kept_or_reported_once(folder, tmp_path) -> None:
    out = tmp_path / "out"
    assert command(folder, out, "--shard-mb", "0.003") == 0
    kept = {path.name for path in (out / "documents").rglob("*.txt")}
    names = {path.name for path in folder.rglob("*.txt") if not path.name.startswith(".")}
    assert kept | {Path(name).name for name in told(out) if name.endswith(".txt")} == names
    lines = (out / "documents/lines.jsonl").read_text("utf-8").splitlines()
    assert len(lines) + sum(name.startswith("lines") for name in told(out)) == 22


@pytest.mark.parametrize("more", [(), ("--threshold", "0"), ("--unit", "characters")])
def test_the_size_of_the_shards_changes_nothing(folder, tmp_path, more) -> None:
    assert command(folder, tmp_path / "a", *more) == 0
    assert command(folder, tmp_path / "b", "--shard-mb", "0.002", *more) == 0
    assert everything(tmp_path / "a") == everything(tmp_path / "b")


def test_two_workers_leave_what_one_leaves(folder, tmp_path) -> None:
    assert command(folder, tmp_path / "one", "--shard-mb", "0.004") == 0
    assert command(folder, tmp_path / "two", "--shard-mb", "0.004", "--workers", "2") == 0
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    assert len(told(tmp_path / "two")) == 5


def test_the_stages_run_under_any_map_of_processes(folder, tmp_path) -> None:
    settings = Settings(rules=RULES, shard_bytes=4000)
    alone = clean_folder(folder, tmp_path / "one", settings=settings)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        together = clean_folder(folder, tmp_path / "two", settings=settings, map=pool.map)
    assert alone == together
    assert everything(tmp_path / "one") == everything(tmp_path / "two")


def test_two_workers_of_a_dask_cluster_leave_what_one_process_leaves(
    folder, passages, tmp_path, monkeypatch
) -> None:
    scratch = tmp_path / "dask"
    monkeypatch.setenv("DASK_CONFIG", str(scratch))  # not the settings of whoever runs the test
    from distributed import Client

    texts = [*passages[:20], passages[5], passages[3].replace("the", "that", 1)]
    settings = Settings(rules=RULES, shard_bytes=4000)
    alone = clean_folder(folder, tmp_path / "one", settings=settings)
    found = near_duplicates(texts)
    here = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with Client(**here, local_directory=str(scratch)) as client:
        workers = client.run(os.getpid)
        executor = client.get_executor(pure=False)
        together = clean_folder(folder, tmp_path / "two", settings=settings, map=executor.map)
        spread = near_duplicates(texts, map=executor.map)
        # A worker that was given nothing to do has not imported what is done.
        used = client.run(lambda: "companion.command._cleaning" in sys.modules)
    assert len(used) == len(set(workers.values()) - {os.getpid()}) == 2
    assert all(used.values())
    assert alone == together
    assert len(told(tmp_path / "two")) == 5
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    assert (found.of >= 0).nonzero()[:, 0].tolist() == [20, 21]
    for one, other in zip(found, spread, strict=True):
        assert torch.equal(one, other)
    assert not any(psutil.pid_exists(process) for process in workers.values())


@pytest.mark.parametrize("stage", ["_measure", "_judge", "_write", "_finish"])
def test_a_run_that_was_stopped_goes_on_and_ends_the_same(
    folder, tmp_path, monkeypatch, stage
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert command(folder, whole, "--shard-mb", "0.004") == 0
    real = getattr(cleaning, stage)
    calls = 0

    def stopping(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == (3 if stage in ("_measure", "_write") else 1):
            raise KeyboardInterrupt("stopped")
        return real(*given)

    with monkeypatch.context() as patched:
        patched.setattr(cleaning, stage, stopping)
        assert command(folder, broken, "--shard-mb", "0.004") == 130
    assert not (broken / "summary.json").exists()
    assert not (broken / "documents").exists()  # nothing half written is to be seen
    measured = sorted((broken / ".clean/facts").iterdir())
    times = [path.stat().st_mtime_ns for path in measured]
    if stage != "_measure":
        assert len(measured) > 3

    def counted(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        return measure(*given)

    measure, calls = cleaning._measure, 0
    with monkeypatch.context() as patched:
        patched.setattr(cleaning, "_measure", counted)
        assert command(folder, broken, "--shard-mb", "0.004") == 0
    if stage != "_measure":
        assert calls == 0  # what was done is not done again
    else:
        assert len(times) == 2
    assert everything(whole) == everything(broken)


def test_what_is_done_is_not_done_again(folder, tmp_path, capsys) -> None:
    assert command(folder, tmp_path / "out") == 0
    before = everything(tmp_path / "out")
    capsys.readouterr()
    assert command(folder, tmp_path / "out") == 0
    assert "all is done already" in capsys.readouterr().out
    assert everything(tmp_path / "out") == before


def test_other_settings_and_another_input_are_refused(folder, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert command(folder, out) == 0
    assert command(folder, out, "--threshold", "0.7") == 2
    assert "a run with other settings" in capsys.readouterr().err
    (folder / "00.txt").write_text("changed", encoding="utf-8")
    assert command(folder, out) == 2
    assert "a run with another input" in capsys.readouterr().err


def test_a_chain_of_resemblances_drops_no_text_without_a_kept_one(tmp_path) -> None:
    root = tmp_path / "texts"
    root.mkdir()
    vocabulary = [f"w{i}" for i in range(1400)]
    for i in range(20):
        words = " ".join(vocabulary[20 * i : 20 * i + 400])
        (root / f"{i:02d}.txt").write_text(words, encoding="utf-8")
    out = tmp_path / "out"
    assert main(["clean", str(root), "--out", str(out), "--rules", "none"]) == 0
    rows = told(out)
    kept = {path.name for path in (out / "documents").iterdir()}
    assert kept == {f"{i:02d}.txt" for i in range(0, 20, 3)}
    assert all(row["of"] in kept and row["similarity"] >= 0.8 for row in rows.values())


def test_a_corpus_of_different_texts_comes_back_whole(passages, tmp_path) -> None:
    root = tmp_path / "texts"
    root.mkdir()
    for i, text in enumerate(passages):
        (root / f"{i:02d}.txt").write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    assert command(root, out) == 0
    assert told(out) == {}
    assert len(list((out / "documents").iterdir())) == len(passages)


def test_texts_without_words_are_no_near_copies_of_each_other(tmp_path) -> None:
    root = tmp_path / "texts"
    root.mkdir()
    (root / "a.txt").write_text("...", encoding="utf-8")
    (root / "b.txt").write_text("!!!", encoding="utf-8")
    (root / "c.txt").write_text("", encoding="utf-8")
    out = tmp_path / "out"
    assert main(["clean", str(root), "--out", str(out), "--rules", "none"]) == 0
    assert told(out) == {}


def test_bad_input_is_named_or_dropped_when_asked(folder, tmp_path, capsys) -> None:
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    assert command(folder, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "latin.txt cannot be read: it is no UTF-8" in err
    assert "--skip-bad" in err
    (folder / "more.jsonl").write_text('{"text": "a"}\n[1\n{"body": "b"}\n', encoding="utf-8")
    assert command(folder, tmp_path / "other", "--skip-bad") == 0
    rows = told(tmp_path / "other")
    assert rows["latin.txt"]["reason"] == "unreadable"
    assert "no UTF-8" in rows["latin.txt"]["wrong"]
    assert rows["more.jsonl:2"]["wrong"] == "it is no JSON"
    assert rows["more.jsonl:3"]["wrong"] == "it has no text under 'text'"


def test_when_nothing_is_left_the_reason_is_near(tmp_path, capsys) -> None:
    root = tmp_path / "texts"
    root.mkdir()
    (root / "诗.txt").write_text("床前明月光，疑是地上霜。" * 9, encoding="utf-8")
    assert command(root, tmp_path / "out") == 0
    assert "nothing is left" in capsys.readouterr().out
    assert "诗.txt" in told(tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--workers", "0"], "--workers must be 1 or more"),
        (["--threshold", "1.5"], "--threshold must be from 0 to 1"),
        (["--rules", "gopher"], "--rules takes some of gopher_quality"),
        (["--rules", "none,c4_quality"], "--rules takes some of"),
        (["--shard-mb", "0"], "--shard-mb must be above 0"),
        (["--threshold", "0.01", "--hashes", "8"], "take longer signatures"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(folder, more, said, tmp_path, capsys) -> None:
    assert main(["clean", str(folder), "--out", str(tmp_path / "x"), *more]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_folders_that_do_not_fit_are_refused(folder, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    cases = [
        (tmp_path / "none", tmp_path / "x", "is no folder"),
        (tmp_path / "empty", tmp_path / "x", "holds no .txt or .jsonl file"),
        (folder, folder / "out", "lie in each other"),
        (folder, folder, "lie in each other"),
        (folder, tmp_path / "full", "is not empty"),
        (folder, folder / "00.txt", "is a file"),
    ]
    for source, out, said in cases:
        assert command(source, out) == 2
        assert said in capsys.readouterr().err
    assert (tmp_path / "full" / "mine.txt").read_text("utf-8") == "mine"


def test_memory_does_not_grow_with_the_text_but_with_the_shard(tmp_path, passages) -> None:
    import tracemalloc

    def peak(count: int) -> int:
        root, out = tmp_path / f"in{count}", tmp_path / f"out{count}"
        root.mkdir()
        with (root / "lines.jsonl").open("w", encoding="utf-8") as file:
            for i in range(count):
                words = " ".join(f"{word}{i}" for word in passages[i % 40].split())
                file.write(json.dumps({"text": words}) + "\n")
        tracemalloc.start()
        settings = Settings(rules=(), shard_bytes=40_000)
        assert clean_folder(root, out, settings=settings).kept == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(150), peak(1200)
    assert large < 2 * small  # of eight times the text


def test_what_may_not_be_opened_is_named_or_dropped(folder, tmp_path, monkeypatch, capsys) -> None:
    opened = Path.open

    def refusing(path: Path, *given: Any, **more: Any) -> Any:
        if path.name in ("07.txt", "lines.jsonl"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *given, **more)

    monkeypatch.setattr(Path, "open", refusing)
    assert command(folder, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "07.txt cannot be read: Permission denied" in err
    assert "--skip-bad" in err
    assert command(folder, tmp_path / "out", "--skip-bad") == 0
    rows = told(tmp_path / "out")
    assert {name for name, row in rows.items() if row["reason"] == "unreadable"} == {
        "07.txt",
        "lines.jsonl:1",
    }


def test_a_folder_that_may_not_be_read_is_an_error(folder, tmp_path, monkeypatch, capsys) -> None:
    listed = os.scandir

    def refusing(path: Any = ".") -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert command(folder, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "sub cannot be read (Permission denied)" in err
    assert "move it out" in err


def test_skip_bad_goes_on_with_the_run_that_asked_for_it(folder, tmp_path, capsys) -> None:
    (folder / "zz.txt").write_bytes(b"caf\xe9")
    out = tmp_path / "out"
    assert command(folder, out, "--shard-mb", "0.004") == 2
    done = sorted((out / ".clean/facts").iterdir())
    times = [path.stat().st_mtime_ns for path in done]
    assert times
    assert command(folder, out, "--shard-mb", "0.004", "--skip-bad") == 0
    assert told(out)["zz.txt"]["reason"] == "unreadable"
    assert command(folder, tmp_path / "new", "--shard-mb", "0.004", "--skip-bad") == 0
    assert everything(out) == everything(tmp_path / "new")
    capsys.readouterr()
    assert command(folder, out, "--shard-mb", "0.004") == 2  # and not the other way round
    assert "a run with other settings" in capsys.readouterr().err


def test_what_is_passed_over_is_counted(folder, tmp_path, passages, capsys) -> None:
    (folder / "UPPER.TXT").write_text(passages[35] + " upper", encoding="utf-8")
    (folder / "packed.jsonl.gz").write_bytes(b"")
    (folder / "linked").symlink_to(folder / "sub", target_is_directory=True)
    (folder / "again.txt").symlink_to(folder / "00.txt")
    (folder / "nowhere.txt").symlink_to(folder / "missing.txt")
    assert command(folder, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "only .txt and .jsonl files are read: 2 of other kinds" in said
    assert "links to folders are not followed: 1" in said
    assert (tmp_path / "out/documents/UPPER.TXT").is_file()
    # A link stands for its file, and comes after it in order.
    assert told(tmp_path / "out")["again.txt"]["of"] == "00.txt"


def test_lines_are_counted_by_line_feeds_alone(tmp_path, capsys) -> None:
    root, out = tmp_path / "texts", tmp_path / "out"
    root.mkdir()
    rows = b'{"text":\r"a b"}\r\n\n{"text": "c d"}\n{"text": "c d"}\n'
    (root / "a.jsonl").write_bytes(rows + b"broken")
    given = ["clean", str(root), "--out", str(out), "--rules", "none", "--shard-mb", "0.00001"]
    assert main(given) == 2
    assert "a.jsonl:5 cannot be read: it is no JSON" in capsys.readouterr().err
    assert main([*given, "--skip-bad"]) == 0
    rows = told(out)
    assert rows["a.jsonl:4"]["of"] == "a.jsonl:3"
    assert rows["a.jsonl:5"]["reason"] == "unreadable"
    assert (out / "documents/a.jsonl").read_bytes() == b'{"text":\r"a b"}\r\n{"text": "c d"}\n'


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_unicode_can_be_reported(folder, tmp_path, passages) -> None:
    for name in (b"x\xe9.txt", b"x\xea.txt"):
        (folder / os.fsdecode(name)).write_text(passages[39] + " new", encoding="utf-8")
    assert command(folder, tmp_path / "out") == 0
    assert told(tmp_path / "out")["x\udcea.txt"]["of"] == "x\udce9.txt"


def test_a_worker_that_was_ended_is_no_end_of_the_run(
    folder, tmp_path, monkeypatch, capsys
) -> None:
    def broken(*given: Any, **more: Any) -> Any:
        raise BrokenProcessPool("a process was terminated")

    with monkeypatch.context() as patched:
        patched.setattr(cleaning, "clean_folder", broken)
        assert command(folder, tmp_path / "out") == 2
    assert "give the same command again" in capsys.readouterr().err
    assert command(folder, tmp_path / "out") == 0


def test_a_summary_that_was_deleted_is_made_again(folder, tmp_path) -> None:
    out = tmp_path / "out"
    assert command(folder, out) == 0
    before = everything(out)
    (out / "summary.json").unlink()
    assert command(folder, out) == 0
    assert everything(out) == before
