import importlib.metadata
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import whence

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "whence"


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*words: str) -> str:
    """What a command prints; the test fails with its output if it fails."""
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_version_is_the_same_wherever_it_is_asked_for():
    written = (SOURCE / "version.py").read_text(encoding="utf-8")
    assert f'"{whence.__version__}"' in written
    assert whence.__version__ == importlib.metadata.version("whence")


def test_the_command_line_tells_the_version():
    pytest.importorskip("whence.cli", reason="the command line is not written yet")
    assert whence.__version__ in run("-m", "whence", "--version")


def test_every_dependency_is_pinned_for_the_tests():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {line.split("==")[0].lower() for line in text.splitlines() if "==" in line}
    extras = [line for lines in project()["optional-dependencies"].values() for line in lines]
    for requirement in [*project()["dependencies"], *extras]:
        assert requirement.split(">=")[0].lower() in pinned


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), ".")
    (path,) = folder.glob("whence-*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile):
    """Templates, styles, scripts and py.typed among them."""
    there = {
        path.relative_to(SOURCE.parent).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == there
    assert "whence/py.typed" in packed


def test_the_wheel_carries_the_licence(wheel: zipfile.ZipFile):
    (licence,) = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
