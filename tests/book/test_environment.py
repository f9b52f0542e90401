"""The set-up: what makes ``.venv`` stale, that it resumes, and that it says what to do."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

import environment

from .conftest import ROOT

# A build backend without dependencies, so that these tests need no package index.
BACKEND = """
import pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "tiny-1-py3-none-any.whl"
    info = "tiny-1.dist-info"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        wheel.writestr("tiny.pth", str(pathlib.Path.cwd()))
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1\\n")
        tag = "Root-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\\n{tag}")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "tiny"
version = "1"
"""


def wheel(folder: Path, name: str) -> tuple[Path, str]:
    """Write a wheel with one module and return it with its hash."""
    path = folder / f"{name}-1-py3-none-any.whl"
    info, module = f"{name}-1.dist-info", b"HERE = True\n"
    digest = base64.urlsafe_b64encode(hashlib.sha256(module).digest()).rstrip(b"=").decode()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", module)
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", f"{name}.py,sha256={digest},{len(module)}\n")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose lock and data are two wheels that lie in it, with its ``.venv`` made."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "requirements").mkdir()
    locked, _ = wheel(root, "locked")
    data, sha = wheel(root, "data")
    (root / "requirements/lock.txt").write_text(f"./{locked.name}\n", encoding="utf-8")
    (root / "requirements/data.txt").write_text(f"./{data.name} --hash=sha256:{sha}\n")
    (root / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    (root / "backend.py").write_text(BACKEND, encoding="utf-8")
    done = setup(root)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def setup(root: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the set-up without any package index, unless ``variables`` names one."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    plain = {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_RETRIES": "0"}
    command = [sys.executable, str(ROOT / "tools/environment.py"), "--root", str(root)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env={**plain, **variables}
    )


def imports(root: Path, *modules: str) -> bool:
    command = [str(root / ".venv/bin/python"), "-c", f"import {', '.join(modules)}"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_set_up_installs_lock_data_and_library(checkout: Path) -> None:
    assert imports(checkout, "locked", "data", "backend")


def test_set_up_is_skipped_while_nothing_changes(checkout: Path) -> None:
    times = []
    for _ in range(3):
        before = os.times()
        done = setup(checkout)
        after = os.times()
        # Processor time: what the skip costs, whatever else the machine is doing.
        used = after.children_user + after.children_system
        times.append(used - before.children_user - before.children_system)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert min(times) < 1


@pytest.mark.parametrize("name", environment.INPUTS)
def test_a_changed_file_makes_it_stale_and_is_named(checkout: Path, name: str) -> None:
    with (checkout / name).open("a", encoding="utf-8") as file:
        file.write("\n# changed\n")
    done = setup(checkout)
    assert done.returncode == 0, done.stderr
    assert f".venv is stale ({name} changed)" in done.stdout
    assert setup(checkout).stdout == ""


def test_a_killed_set_up_is_finished_by_the_next(checkout: Path) -> None:
    (checkout / ".venv/stamp.json").unlink()
    command = [str(checkout / ".venv/bin/python"), "-m", "pip", "uninstall", "-q", "-y", "data"]
    subprocess.run(command, check=True, capture_output=True)
    done = setup(checkout)
    assert done.returncode == 0, done.stderr
    assert "going on with an unfinished .venv" in done.stdout
    assert imports(checkout, "data")


def test_a_broken_environment_is_made_anew(checkout: Path) -> None:
    (checkout / ".venv/bin/python").unlink()
    done = setup(checkout)
    assert done.returncode == 0, done.stderr
    assert ".venv is broken" in done.stdout
    assert imports(checkout, "locked", "data")


def test_an_environment_of_another_python_is_stale(checkout: Path) -> None:
    stamp = checkout / ".venv/stamp.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "Python": "3.10"}))
    assert "stale (Python changed)" in setup(checkout).stdout


@pytest.fixture
def failing(checkout: Path):
    """Files that a test may spoil; they are put back, and ``.venv`` with them."""
    before = {name: (checkout / name).read_text(encoding="utf-8") for name in environment.INPUTS}
    yield checkout
    for name, text in before.items():
        (checkout / name).write_text(text, encoding="utf-8")
    assert setup(checkout).returncode == 0


def test_a_wrong_hash_is_refused_and_explained(failing: Path) -> None:
    other, _ = wheel(failing, "other")
    text = f"./{other.name} --hash=sha256:{'0' * 64}\n"
    (failing / "requirements/data.txt").write_text(text, encoding="utf-8")
    done = setup(failing)
    assert done.returncode == 1
    assert "set-up failed: a downloaded file is not the pinned one" in done.stderr
    assert "Traceback" not in done.stderr
    assert not imports(failing, "other")


def test_a_missing_package_is_named(failing: Path) -> None:
    (failing / "requirements/lock.txt").write_text("no-such-package==1.2.3\n", encoding="utf-8")
    done = setup(failing)
    assert done.returncode == 1
    assert "the package index has no no-such-package==1.2.3" in done.stderr
    assert not (failing / ".venv/stamp.json").exists()


def test_no_network_is_said_to_be_that(failing: Path) -> None:
    (failing / "requirements/lock.txt").write_text("no-such-package==1.2.3\n", encoding="utf-8")
    closed = "http://127.0.0.1:9/simple"
    done = setup(failing, PIP_NO_INDEX="0", PIP_INDEX_URL=closed, PIP_RETRIES="1")
    assert done.returncode == 1
    assert "set-up failed: the package index cannot be reached" in done.stderr
    assert "no no-such-package" not in done.stderr


def test_an_incomplete_checkout_is_said_to_be_that(tmp_path: Path) -> None:
    done = setup(tmp_path)
    assert done.returncode == 1
    assert "requirements/lock.txt is missing" in done.stderr


def test_other_failures_show_the_end_of_what_pip_said() -> None:
    assert environment.explain("a\nsomething odd\n") == "pip failed:\na\nsomething odd"


def launcher(folder: Path, name: str, version: str) -> Path:
    """Write a program that takes itself for a Python of some version."""
    path = folder / name
    path.write_text(
        textwrap.dedent(
            f"""\
            #!/bin/sh
            if [ "$1" = -c ]; then echo {version}; else echo "{name} runs $1"; fi
            """
        ),
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def choose(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", str(ROOT / "tools/python.sh"), "tool.py"]
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": str(folder), **variables},
    )


def test_the_newest_suitable_python_is_taken(tmp_path: Path) -> None:
    launcher(tmp_path, "python3", "3.10")
    launcher(tmp_path, "python3.11", "3.11")
    launcher(tmp_path, "python3.12", "3.12")
    assert choose(tmp_path).stdout == "python3.12 runs tool.py\n"


def test_a_named_python_is_taken(tmp_path: Path) -> None:
    launcher(tmp_path, "python3.12", "3.12")
    mine = launcher(tmp_path, "mine", "3.11")
    assert choose(tmp_path, PYTHON=str(mine)).stdout == "mine runs tool.py\n"


def test_a_python_too_old_or_too_new_is_refused_by_name(tmp_path: Path) -> None:
    launcher(tmp_path, "python3", "3.10")
    launcher(tmp_path, "python", "3.14")
    done = choose(tmp_path)
    assert done.returncode == 1
    assert "needs Python 3.11 to 3.13" in done.stderr
    assert "python3 is 3.10; python is 3.14" in done.stderr


def test_no_python_at_all_is_said_to_be_that(tmp_path: Path) -> None:
    done = choose(tmp_path)
    assert done.returncode == 1
    assert "Found: none that runs" in done.stderr
