"""The house rules: direction of imports, layout, locks, and what is in the packages that are built."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tdx.version import VERSION

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [ROOT / "engine" / "tdx", ROOT / "cli" / "tdx_cli"]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def normalised(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found.group()).lower()


def pinned(lock: Path) -> set[str]:
    return {normalised(line) for line in lock.read_text().splitlines() if "==" in line}


def built(kind: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = folder.iterdir()
    return result


def test_every_import_contract_holds() -> None:
    # In a process of its own: it sets logging up for itself, and so switches off the loggers that are there.
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_folders_above_the_packages_are_not_packages() -> None:
    for package in PACKAGES:
        assert not (package.parent / "__init__.py").exists()
        assert (package / "py.typed").is_file()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_every_folder_of_modules_is_a_package(package: Path) -> None:
    folders = {module.parent for module in package.rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_test_folders_are_not_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_pins_every_file_by_hash_and_names_no_host(lock: Path) -> None:
    text = lock.read_text()
    entries = re.split(r"\n(?=\S)", re.sub(r"(?m)^#.*\n", "", text))
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text


def test_what_is_declared_is_locked() -> None:
    project = PROJECT["project"]
    run = {normalised(each) for each in project["dependencies"]}
    test = {normalised(each) for each in project["optional-dependencies"]["test"]}
    perf = {normalised(each) for each in project["optional-dependencies"]["perf"]}
    build = {normalised(each) for each in PROJECT["dependency-groups"]["build"]}
    assert run <= pinned(ROOT / "requirements" / "run.txt")
    assert build <= pinned(ROOT / "requirements" / "build.txt")
    # The tests of the plots draw some.
    assert run | test | perf | build <= pinned(ROOT / "requirements" / "test.txt")


def test_the_locks_agree_on_versions() -> None:
    versions = {
        lock.stem: set(re.findall(r"(?m)^([a-z0-9-]+==[^ ;\\]+)", lock.read_text())) for lock in LOCKS
    }
    assert versions["run"] <= versions["test"]
    assert versions["build"] <= versions["test"]


def test_the_wheel_carries_both_packages_typed_and_the_command(tmp_path: Path) -> None:
    with zipfile.ZipFile(built("wheel", tmp_path)) as wheel:
        names = set(wheel.namelist())
        info = f"tdx_transfer-{VERSION}.dist-info"
        command = wheel.read(f"{info}/entry_points.txt").decode()
        data = f"tdx_transfer-{VERSION}.data"
        shared = {name: wheel.read(name) for name in names if name.startswith(data)}
    assert {"tdx/__init__.py", "tdx/py.typed", "tdx_cli/__init__.py", "tdx_cli/py.typed"} <= names
    assert {name.split("/")[0] for name in names} == {"tdx", "tdx_cli", info, data}
    units = [path for path in (ROOT / "docs" / "systemd").rglob("*") if path.is_file()]
    assert len(units) > 5
    assert shared == {
        f"{data}/data/share/tdx/{path.relative_to(ROOT / 'docs')}": path.read_bytes() for path in units
    }
    assert f"{info}/licenses/LICENSE" in names
    assert "tdx = tdx_cli.main:main" in command


def test_the_source_archive_is_enough_to_build_and_test(tmp_path: Path) -> None:
    with tarfile.open(built("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "Makefile", "LICENSE", "README.md", ".ci/run", "requirements/test.txt"}
    assert wanted <= names
    assert {"engine/tdx/py.typed", "cli/tdx_cli/py.typed", "tests/conftest.py"} <= names
    assert not any("__pycache__" in name or name.startswith(".venv") for name in names)
