"""The command line at its edges: strange files, numbers and pipes end in one line, or just work."""

import errno
import io
import json
import math
import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from companion.command import _corpus, _run, _writing, main
from companion.command._corpus import END
from companion.core import Processes
from companion.data import __main__ as data_command
from companion.models import load_pretrained

os.environ["HF_HUB_OFFLINE"] = "1"
TEXT = "To be, or not to be, that is the question.\n" * 7
TINY = [
    *("--dim", "12", "--layers", "1", "--heads", "1", "--kv-heads", "1", "--ff-dim", "5"),
    *("--context", "8", "--vocab", "270", "--batch", "2", "--steps", "1", "--device", "cpu"),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "play.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    (folder / "play.txt").write_text(TEXT, encoding="utf-8")
    assert main(["train", str(folder / "play.txt"), "--out", str(folder / "model"), *TINY]) == 0
    return folder / "model"


def train(*words, out="model"):
    return main(["train", *TINY, "--out", str(out), *map(str, words)])


def one_line(capsys, status, *, command="companion train"):
    """What a refused request says: one line on standard error, and nothing else."""
    out, err = capsys.readouterr()
    assert status == 2, out + err
    assert err.startswith(f"{command}: "), err
    assert err.count("\n") == 1, err
    assert out == ""
    assert "Traceback" not in err
    return err


def learned(out="model"):
    """The text that a run has learned from and was tested on."""
    tokenizer = Tokenizer.from_file(f"{out}/run/tokenizer.json")
    corpus = _corpus.Corpus.read(Path(out, "run"))
    parts = [corpus.ids(Path(out, "run"), part).tolist() for part in ("train", "held_out")]
    return tokenizer.decode([i for ids in parts for i in ids if i != corpus.end])


# --- texts ---------------------------------------------------------------------------------------


def test_a_pipe_is_a_text_and_the_run_goes_on_with_the_same_content(here, capsys):
    os.mkfifo(here / "pipe")
    for _ in range(2):
        writer = threading.Thread(target=lambda: (here / "pipe").write_text(TEXT))
        writer.start()
        assert train("pipe") == 0
        writer.join()
    assert learned() == TEXT
    assert "going on after step 1" in capsys.readouterr().out


def test_the_standard_input_is_a_text(here, monkeypatch):
    read, write = os.pipe()
    os.write(write, TEXT.encode())
    os.close(write)
    assert train(f"/dev/fd/{read}") == 0
    os.close(read)
    assert learned() == TEXT
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert train("-", out="other") == 0
    assert learned("other") == TEXT


def test_of_a_folder_only_text_files_are_read(here, capsys):
    texts = here / "texts"
    (texts / "x.txt").mkdir(parents=True)
    (texts / "x.txt" / "inner.txt").write_text(TEXT)
    (texts / "a.txt").write_text("First. ")
    (texts / "dangling.txt").symlink_to("nowhere")
    (texts / "loop.txt").symlink_to("loop.txt")
    (texts / "up").symlink_to(here)
    (texts / "._a.txt").write_bytes(b"\0\5\x16\7\xff")
    (texts / ".git").mkdir()
    (texts / ".git" / "b.txt").write_bytes(b"\xff")
    os.mkfifo(texts / "pipe.txt")
    assert train("texts") == 0
    said = capsys.readouterr().err
    assert learned() == "First. " + TEXT
    for name in ("dangling.txt", "loop.txt", "pipe.txt"):
        assert f"note: texts/{name} is left out: it is no file\n" in said
    assert "texts/up is left out: it is a link to a folder" in said
    assert "._a" not in said


def test_a_run_does_not_read_what_runs_have_written(here, capsys):
    texts = here / "texts"
    texts.mkdir()
    (here / "play.txt").rename(texts / "play.txt")
    words = ("texts", here / "texts")
    for given in words:  # the same folder, named in two ways
        assert train(given, out="texts/model") == 0
        assert (texts / "model" / "sample.txt").is_file()
        assert learned(texts / "model") == TEXT
    assert "note" not in capsys.readouterr().err
    assert train("texts", out="texts/second") == 0
    assert "texts/model is left out: it is the folder of a run" in capsys.readouterr().err
    assert learned(texts / "second") == TEXT


def test_a_file_named_twice_is_read_once(here, capsys):
    (here / "link.txt").symlink_to("play.txt")
    assert train("play.txt", ".", "./play.txt") == 0
    assert learned() == TEXT
    assert "play.txt is read once" in capsys.readouterr().err


def test_the_mark_before_the_first_byte_is_not_learned(here, capsys):
    (here / "marked.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert train("marked.txt") == 0
    assert learned() == TEXT
    (here / "wide.txt").write_text(TEXT, encoding="utf-16")
    assert "it is UTF-16, so convert it" in one_line_of(capsys, "wide.txt")


def one_line_of(capsys, *words, out="new"):
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    said = one_line(capsys, train(*words, out=out))
    assert sorted(Path().rglob("*")) == before, "something was left behind"
    return said


def test_line_ends_stay_as_they_are(here):
    (here / "dos.txt").write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert train("dos.txt") == 0
    assert learned() == TEXT.replace("\n", "\r\n")


def write_texts(here):
    (here / "empty.txt").write_bytes(b"")
    (here / "blank.txt").write_bytes(b" \r\n\t\n")
    (here / "short.txt").write_text("Brief.")
    (here / "latin.txt").write_bytes(TEXT.encode() + b"caf\xe9")
    (here / "binary.txt").write_bytes(bytes(range(128)) * 9)
    (here / "nowhere.txt").symlink_to("missing")
    (here / "loop.txt").symlink_to("loop.txt")
    (here / "bare").mkdir()
    (here / "bare" / "notes.md").write_text(TEXT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("missing.txt", "missing.txt does not exist"),
        ("nowhere.txt", "it is a link that leads nowhere"),
        ("loop.txt", "it is a link that leads nowhere"),
        ("two\nlines.txt", "two lines.txt does not exist"),
        ("", "the path of a text is empty"),
        ("~nobody-of-that-name/a.txt", "cannot be found"),
        ("n" * 300, "File name too long"),
        ("a\0b", "null byte|does not exist"),
        ("bare", "bare holds no .txt file"),
        ("empty.txt", "the text is empty"),
        ("blank.txt", "the text is empty"),
        ("short.txt", "do not fill one block"),
        ("latin.txt", "latin.txt is not UTF-8 text"),
        ("binary.txt", "binary.txt is not text: it holds zero bytes"),
        ("/dev/zero", "is a device and no text"),
        ("/dev/null", "is a device and no text"),
        ("play.txt/x", "play.txt/x does not exist"),
    ],
)
def test_what_is_no_text_is_refused(here, capsys, text, said):
    write_texts(here)
    told = one_line_of(capsys, text)
    assert any(part in told for part in said.split("|")), told


def test_a_file_that_may_not_be_read_is_named(here, capsys, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert one_line_of(capsys, "play.txt") == "companion train: play.txt: Permission denied\n"


# --- numbers and devices -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--lr 1e300", "--lr must be from 0 to 1000, got 1e+300"),
        ("--lr nan", "--lr must be above 0, got nan"),
        ("--lr inf", "--lr must be from 0 to 1000, got inf"),
        ("--lr 0", "--lr must be above 0"),
        ("--steps 99999999999999", "--steps must be 100000000 or less"),
        ("--steps 0", "--steps must be 1 or more"),
        ("--device meta", "unknown device 'meta': --device takes cpu, cuda, cuda:1 or mps"),
        ("--device cpu:x", "unknown device 'cpu:x'"),
        ("--device :0", "unknown device ':0'"),
        ("--seed 99999999999999999999", "--seed must be 9223372036854775807 or less"),
        ("--seed -1", "--seed must be 0 or more"),
        ("--dim 0", "--dim must be 1 or more"),
        ("--dim 13", "13"),
        ("--dim 12 --heads 5", "heads"),
        ("--heads 3 --kv-heads 2", "kv_heads must divide heads"),
        ("--dim 99999999999999999999", "--dim must be 2147483647 or less"),
        ("--dim 600000000 --heads 2 --kv-heads 2", "GB: choose smaller sizes"),
        ("--layers 2000000000", "GB: choose smaller sizes"),
        ("--layers -3", "--layers must be 1 or more"),
        ("--heads 0", "--heads must be 1 or more"),
        ("--kv-heads 0", "--kv-heads must be 1 or more"),
        ("--ff-dim 0", "--ff-dim must be 1 or more"),
        ("--context 0", "--context must be 1 or more"),
        ("--context 1000000", "do not fill one block of context + 1 = 1000001"),
        ("--context 2000000000 --batch 1000000", "is too much for a step"),
        ("--vocab 100", "a vocabulary needs 256 bytes"),
        ("--vocab 1000000000000", "--vocab must be 2147483647 or less"),
        ("--batch 0", "--batch must be 1 or more"),
        ("--batch 1000000000", "--batch must be 1048576 or less"),
        ("--accumulate 3", "cannot be shared"),
        ("--accumulate 0", "--accumulate must be 1 or more"),
        ("--warmup -1", "--warmup must lie in"),
        ("--warmup 1", "--warmup must lie in"),
        ("--clip nan", "--clip must be above 0, got nan"),
        ("--clip 0", "--clip must be above 0"),
        ("--clip 1.5e30", "--clip must be from 0 to 1e+30, got 1.5e+30"),
        ("--weight-decay -1", "--weight-decay must be 0 or more"),
        ("--weight-decay nan", "--weight-decay must be"),
        ("--weight-decay 1e300", "--weight-decay must be from 0 to 1000"),
        ("--dropout 1", "--dropout must be"),
        ("--dropout nan", "--dropout must be"),
        ("--held-out nan", "must lie in [0, 1), got nan"),
        ("--held-out 1", "must lie in [0, 1), got 1.0"),
        ("--held-out 0.9999", "do not fill one block|nothing is left"),
        ("--save-every 0", "--save-every must be 1 or more"),
        ("--keep 0", "--keep must be 1 or more"),
        ("--report-every 0", "--report-every must be 1 or more"),
        ("--evaluate-every 0", "--evaluate-every must be 1 or more"),
        ("--parallel ddp", "'ddp' needs processes that know each other"),
        ("--tokenizer missing.json", "missing.json cannot be read: No such file"),
        ("--tokenizer .", ". cannot be read: Is a directory"),
        ("--tokenizer play.txt", "play.txt is not a tokenizer.json"),
        ("--tokenizer ~nobody-of-that-name/t.json", "cannot be found"),
    ],
)
def test_absurd_options_are_refused_and_leave_nothing_behind(here, capsys, words, said):
    told = one_line_of(capsys, "play.txt", *words.split(), out="deep/new")
    assert any(part in told for part in said.split("|")), told


# --- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("", "the path of --out is empty"),
        (".", ". is not empty and holds no run"),
        ("play.txt", "play.txt is not empty and holds no run"),
        ("play.txt/model", "Not a directory"),
        ("/proc/model", "/proc/model"),
        ("~nobody-of-that-name/model", "cannot be found"),
        ("n" * 300, "File name too long"),
        ("x\udcff", "--out is not UTF-8 text: b'\\xff' is no character"),
        ("foreign", "foreign/run is not empty and holds no run"),
        ("link", "link: File exists|link/run: File exists"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(here, capsys, out, said):
    (here / "foreign" / "run").mkdir(parents=True)
    (here / "foreign" / "run" / "diary.md").write_text("Not to be deleted.")
    (here / "link").symlink_to("nowhere")
    told = one_line_of(capsys, "play.txt", out=out)
    assert any(part in told for part in said.split("|")), told
    assert (here / "foreign" / "run" / "diary.md").is_file()


def test_a_full_disk_leaves_nothing_behind(here, capsys, monkeypatch):
    def full(*words, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_corpus, "write_atomically", full)
    assert "No space left on device" in one_line_of(capsys, "play.txt", out="deep/new")


def test_a_path_may_hold_any_character(here, capsys):
    name = "a b\nc ' \" 中"
    (here / name).mkdir()
    (here / "play.txt").rename(here / name / "a\udcff.txt")  # no UTF-8, as old disks have it
    assert train(name, out=f"{name}/model") == 0
    assert learned(f"{name}/model") == TEXT
    capsys.readouterr()
    assert main(["generate", f"{name}/model", "--tokens", "3", "--device", "cpu"]) == 0


DAMAGE = {
    "run/train.bin": "is missing|has 3 bytes in place of",
    "run/held_out.bin": "is missing|has 3 bytes in place of",
    "run/corpus.json": "corpus.json is missing|corpus.json is damaged",
    "run/settings.json": "is not empty and holds no run|settings.json is damaged",
    "run/tokenizer.json": "tokenizer.json is missing|tokenizer.json is damaged",
}


@pytest.mark.parametrize("content", [None, b'{"', b"[1]", b"\xff\0\1"])
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_refused_before_it_goes_on(model, capsys, name, content):
    text, path = model.parent / "play.txt", model / name
    before = path.read_bytes()
    try:
        path.unlink() if content is None else path.write_bytes(content)
        if path.suffix == ".bin" and content is not None:
            path.write_bytes(b"abc")
        capsys.readouterr()
        told = one_line(capsys, train(text, out=model))
    finally:
        path.write_bytes(before)
    assert any(part in told for part in DAMAGE[name].split("|")), told
    assert str(model) in told


@pytest.mark.parametrize(
    "content",
    ['{"vocab": 270}', '{"a": 1}', "[" * 9999, "null"],
)
def test_a_description_of_other_things_is_damaged(model, capsys, content):
    path = model / "run" / "corpus.json"
    before = path.read_text()
    try:
        path.write_text(content)
        capsys.readouterr()
        told = one_line(capsys, train(model.parent / "play.txt", out=model))
    finally:
        path.write_text(before)
    assert "corpus.json is damaged: the run cannot go on; delete its folder" in told


# --- generate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "a\udcffb"], "--prompt is not UTF-8 text: b'\\xff' is no character"),
        (["--temperature", "nan"], "--temperature must be from 0"),
        (["--temperature", "inf"], "--temperature must be from 0"),
        (["--temperature=-1e-45"], "--temperature must be 0 or more, got -1e-45"),
        (["--top-k", "0"], "--top-k must be 1 or more"),
        (["--top-p", "0"], "--top-p must be above 0"),
        (["--top-p", "1.5"], "--top-p must be from 0 to 1"),
        (["--min-p=-0.1"], "--min-p must be 0 or more"),
        (["--typical", "nan"], "--typical must be above 0"),
        (["--repetition-penalty", "0"], "--repetition-penalty must be above 0"),
        (["--no-repeat-ngram", "0"], "--no-repeat-ngram must be 1 or more"),
        (["--tokens", "-1"], "--tokens must be 1 or more"),
        (["--tokens", "99999999999"], "--tokens must be 100000000 or less"),
        (["--seed", "99999999999999999999"], "--seed must be 9223372036854775807 or less"),
        (["--seed", "-1"], "--seed must be 0 or more"),
        (["--device", "meta"], "unknown device 'meta'"),
    ],
)
def test_absurd_requests_to_write_are_refused(model, capsys, words, said):
    status = main(["generate", str(model), "--device", "cpu", *words])
    assert said in one_line(capsys, status, command="companion generate")


@pytest.mark.parametrize("words", [[], ["--temperature", "0"], ["--temperature", "1e300"]])
@pytest.mark.parametrize("prompt", ["", " ", "\0", "中🙂", "<|endoftext|>", "be " * 99])
def test_any_prompt_is_continued(model, capsys, prompt, words):
    words = ["--prompt", prompt, "--tokens", "12", "--device", "cpu", *words]
    assert main(["generate", str(model), *words]) == 0
    assert capsys.readouterr().out.startswith(prompt)


def test_the_smallest_temperature_is_a_temperature(model, capsys, monkeypatch):
    asked = {}
    monkeypatch.setattr(_writing, "continue_prompt", lambda *_, **more: asked.update(more) or "")
    assert main(["generate", str(model), "--temperature", "1e-45"]) == 0
    assert asked["temperature"] == 1e-45


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b"\xff"),
        ("config.json", b'{"model_type": "llama"}'),
        ("config.json", b'{"model_type": 3}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 64),
        ("model.safetensors", None),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff"),
        ("tokenizer.json", None),
    ],
)
def test_a_damaged_model_is_refused(model, capsys, name, content):
    path = model / name
    before = path.read_bytes()
    try:
        path.unlink() if content is None else path.write_bytes(content)
        status = main(["generate", str(model), "--device", "cpu"])
    finally:
        path.write_bytes(before)
    told = one_line(capsys, status, command="companion generate")
    assert str(model) in told
    assert "Error: " not in told, "an error that nobody foresaw"


@pytest.mark.parametrize("name", ["missing", "play.txt", "", "~nobody-of-that-name", "n" * 300])
def test_a_folder_without_a_model_is_refused(here, capsys, name):
    status = main(["generate", name])
    assert one_line(capsys, status, command="companion generate")


# --- consoles ------------------------------------------------------------------------------------


class Console(io.TextIOWrapper):
    """A standard output with an encoding, of which the bytes can be seen."""

    def __init__(self, encoding, errors="strict"):
        super().__init__(io.BytesIO(), encoding=encoding, errors=errors)

    def said(self):
        self.flush()
        return self.buffer.getvalue()


def test_a_console_that_lacks_characters_shows_question_marks(here, monkeypatch):
    (here / "play.txt").write_text("人之初,性本善。" * 40, encoding="utf-8")
    console = Console("ascii")
    monkeypatch.setattr(sys, "stdout", console)
    assert train("play.txt", out="模型") == 0
    assert b"wrote ??\n" in console.said()
    assert (here / "模型" / "config.json").is_file()
    for encoding, errors, shown in (
        ("ascii", "strict", b"??"),
        ("ascii", "xmlcharrefreplace", b"&#20154;&#20043;"),
        ("latin-1", "strict", b"??"),
        ("gbk", "strict", "人之".encode("gbk")),
        ("utf-8", "strict", "人之".encode()),
    ):
        console = Console(encoding, errors)
        monkeypatch.setattr(sys, "stdout", console)
        words = ["--prompt", "人之", "--tokens", "9", "--device", "cpu", "--seed", "1"]
        assert main(["generate", "模型", *words]) == 0
        assert console.said().startswith(shown)


class Gone(io.StringIO):
    """A standard output whose reader has left."""

    encoding = "utf-8"
    errors = "strict"

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error


@pytest.mark.parametrize(
    "words",
    [["generate", "MODEL", "--tokens", "3", "--device", "cpu"], ["--help"], ["data", "list"]],
)
def test_a_reader_that_has_gone_ends_the_command_quietly(model, capsys, monkeypatch, words):
    monkeypatch.setattr(sys, "stdout", Gone(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    words = [str(model) if word == "MODEL" else word for word in words]
    status = data_command.main(words[1:]) if words[0] == "data" else main(words)
    assert status == 141
    assert capsys.readouterr().err == ""


def test_a_disk_that_is_full_is_told(model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Gone(OSError(errno.ENOSPC, "No space left on device")))
    assert main(["generate", str(model), "--tokens", "3", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.endswith("No space left on device\n")


@pytest.mark.parametrize(
    ("words", "place", "said"),
    [
        (["generate", "MODEL"], (_writing, "continue_prompt"), "companion generate: stopped\n"),
        (["data", "list"], (data_command, "data_sets"), "companion.data: stopped\n"),
        (
            ["train", "play.txt", "--out", "new", *TINY],
            (_corpus, "prepare"),
            "companion train: stopped; the same command goes on from the last checkpoint\n",
        ),
    ],
)
def test_ctrl_c_ends_a_command_with_one_line(here, model, capsys, monkeypatch, words, place, said):
    def stop(*words, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(*place, stop)
    words = [str(model) if word == "MODEL" else word for word in words]
    assert (data_command.main(words[1:]) if words[0] == "data" else main(words)) == 130
    assert capsys.readouterr().err == said
    assert not (here / "new").exists()


def test_an_error_that_nobody_foresaw_is_one_line_unless_asked(model, capsys, monkeypatch):
    def fail(*words, **more):
        raise IndexError("index out\n  of range" + "." * 999)

    monkeypatch.setattr(_writing, "continue_prompt", fail)
    told = one_line(capsys, main(["generate", str(model)]), command="companion generate")
    assert told.startswith("companion generate: IndexError: index out of range...")
    assert len(told) < 600
    monkeypatch.setenv("COMPANION_TRACEBACK", "1")
    with pytest.raises(IndexError, match="index out"):
        main(["generate", str(model)])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_lack_of_memory_is_told_as_that(model, capsys, monkeypatch, error):
    def fail(*words, **more):
        raise error

    monkeypatch.setattr(_writing, "continue_prompt", fail)
    told = one_line(capsys, main(["generate", str(model)]), command="companion generate")
    assert "there is not enough memory: choose smaller sizes" in told


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([], "companion"),
        (["fly"], "companion"),
        (["train"], "companion train"),
        (["train", "a.txt", "--out", "b", "--steps", "1.5"], "companion train"),
        (["train", "a.txt", "--out", "b", "--size", "huge"], "companion train"),
        (["train", "a.txt", "--out", "b", "--what"], "companion"),
        (["generate"], "companion generate"),
        (["generate", "m", "--temperature", "warm"], "companion generate"),
    ],
)
def test_words_that_are_no_command_get_one_line(capsys, words, command):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    _, err = capsys.readouterr()
    assert err.startswith(f"{command}: ")
    assert err.endswith(f"({command} --help says more)\n")
    assert err.count("\n") == 1


# --- tokenizers of others ------------------------------------------------------------------------


def letters(text=TEXT, *, unknown=None):
    """A tokenizer with a token for each character of a text, and one for the end."""
    ids = {character: place for place, character in enumerate(sorted(set(text)))}
    more = {} if unknown is None else {unknown: len(ids)}
    made = Tokenizer(models.WordLevel(ids | more | {END: len(ids | more)}, unknown or END))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return made


def save_with_end(largest, path="t.json"):
    """Give the last token of a tokenizer of 23 an id far behind the others."""
    told = json.loads(letters().to_str())
    told["model"]["vocab"][END] = largest
    Path(path).write_text(json.dumps(told))


@pytest.mark.parametrize("largest", [900, 70_000])
def test_ids_with_holes_are_sized_by_the_largest(here, capfd, largest):
    save_with_end(largest)
    assert train("play.txt", "--tokenizer", "t.json", "--steps", "2") == 0
    assert learned() == TEXT
    assert load_pretrained("model").model.tokens.weight.shape[0] == largest + 1
    ids = _corpus.Corpus.read(Path("model/run")).ids(Path("model/run"), "train")
    assert int(ids[0]) == largest
    assert ids.dtype == (torch.uint16 if largest < 65536 else torch.int32)
    log = json.loads(Path("model/training_log.json").read_text())
    assert log["held_out_bits_per_byte"][-1][1] > 1
    assert main(["generate", "model", "--tokens", "5", "--device", "cpu"]) == 0
    said = capfd.readouterr()
    assert "note" not in said.err
    assert "holes" not in said.out + said.err, "the library's own complaint"


@pytest.mark.parametrize(
    ("largest", "said"),
    [(2**31 - 2, "GB: choose smaller sizes"), (2**32 - 2, "a token of id 4294967294: ids must be")],
)
def test_a_token_far_beyond_memory_is_refused(here, capsys, largest, said):
    save_with_end(largest)
    assert said in one_line_of(capsys, "play.txt", "--tokenizer", "t.json", "--dim", "1024")


def refused_tokenizers():
    blind = Tokenizer(models.WordLevel({"[UNK]": 0, END: 1}, "[UNK]"))
    deaf = Tokenizer(models.BPE({"q": 0, END: 1}, []))  # drops what it does not know
    alike = letters()  # reads every character as one and the same
    alike.normalizer = normalizers.Replace(Regex("[^t]"), "t")
    piece = Tokenizer(models.WordPiece({"[UNK]": 0, END: 1}, unk_token="[UNK]"))
    piece.pre_tokenizer = pre_tokenizers.Whitespace()
    likely = Tokenizer(models.Unigram([("<unk>", 0.0), ("q", -1.0)], 0, False))
    likely.add_special_tokens([END])
    return {"blind": blind, "deaf": deaf, "alike": alike, "piece": piece, "likely": likely}


@pytest.mark.parametrize("name", refused_tokenizers())
def test_a_tokenizer_that_loses_the_text_is_refused(here, capsys, name):
    refused_tokenizers()[name].save("t.json")
    said = one_line_of(capsys, "play.txt", "--tokenizer", "t.json")
    assert "t.json loses" in said
    assert "take a tokenizer made for such text, or leave out --tokenizer" in said


@pytest.mark.parametrize("kind", ["unknown", "dropped", "white space", "capitals"])
def test_lost_bytes_are_not_counted(here, capsys, kind):
    # é is of two bytes; the two last lines are held out.
    text = "abab\n" * 30 + "abéab Ab\n" * 2
    (here / "play.txt").write_text(text, encoding="utf-8")
    known = {"unknown": "ab A\n", "dropped": "ab A\n", "white space": "abéA", "capitals": "abé \n"}
    made = letters(known[kind], unknown="[UNK]")
    if kind == "dropped":
        made = Tokenizer(models.BPE({c: i for i, c in enumerate("ab A\n")} | {END: 5}, []))
    if kind == "white space":
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), made.pre_tokenizer]
        )
    if kind == "capitals":
        made.normalizer = normalizers.Lowercase()
    made.save("t.json")
    assert train("play.txt", "--tokenizer", "t.json", "--held-out", "0.105") == 0
    said = capsys.readouterr()
    corpus = _corpus.Corpus.read(Path("model/run"))
    # Of 10 bytes of a line that is held out, and of 5 of the others.
    lost = {"unknown": (2, 0), "dropped": (2, 0), "white space": (2, 1), "capitals": (1, 0)}[kind]
    assert corpus.held_out_lost == 2 * lost[0]
    assert corpus.held_out_bytes == 2 * (10 - lost[0])
    assert corpus.train_lost == 30 * lost[1]
    assert corpus.train_bytes == 30 * (5 - lost[1])
    assert f"t.json loses {2 * lost[0]} of 20 bytes of the text, such as" in said.err
    assert "bytes that the tokenizer does not tell are not counted" in said.out


def test_marks_for_spaces_and_bytes_lose_nothing(here, capsys):
    text = "A b  c\n é 中\n" * 20
    (here / "play.txt").write_text(text, encoding="utf-8")
    vocab = [("<unk>", 0.0), *((c, -1.0) for c in "▁Abc\n"), (END, -9.0)]
    vocab += [(f"<0x{byte:02X}>", -5.0) for byte in range(256)]
    made = Tokenizer(models.Unigram(vocab, 0, True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.save("t.json")
    assert train("play.txt", "--tokenizer", "t.json") == 0
    assert "loses" not in capsys.readouterr().err


def test_a_tokenizer_is_found_at_home_and_in_a_pipe(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    content = letters().to_str()
    Path("t.json").write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert train("~/play.txt", "--tokenizer", "~/t.json", out="~/model") == 0
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_text(content))
    writer.start()
    assert train("play.txt", "--tokenizer", "pipe", out="other") == 0
    writer.join()
    assert learned("other") == learned("model")


def test_a_tokenizer_without_an_end_is_refused(here, capsys):
    Tokenizer(models.BPE({"T": 0}, [])).save("t.json")
    said = one_line_of(capsys, "play.txt", "--tokenizer", "t.json")
    assert "has no token for the end of a document: it needs one of <|endoftext|>" in said


@pytest.mark.parametrize("training", [True, False])
def test_a_held_out_test_leaves_the_model_in_the_mode_it_was_in(training):
    class Watched(torch.nn.Linear):
        def forward(self, batch):
            seen.append(self.training)
            return batch[0].sum()

    seen = []
    module = Watched(1, 1).train(training)
    settings = {"context": 3, "batch": 2}
    here = Processes(rank=0, world=1, device=torch.device("cpu"))
    test = _run._HeldOut(torch.arange(8), 5, settings, here)
    # Two blocks of 3 tokens and what they predict, and the rest: 0..6 in rows that overlap, 6 7.
    assert test.measure(module, None) == pytest.approx(
        (0 + 1 + 2 + 3 + 3 + 4 + 5 + 6 + 6 + 7) / (5 * math.log(2))
    )
    assert module.training is training
    assert seen == [False, False]
