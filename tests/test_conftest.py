"""The suite without the programs that some of its tests use."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
WITHOUT_PLAYWRIGHT = """
import sys
import pytest
sys.modules["playwright"] = None  # an import of it raises ModuleNotFoundError
sys.exit(pytest.main(sys.argv[1:]))
"""
REASONS = {
    "chromium": "Chromium is not installed",
    "compiler": "no C compiler is installed",
    "onnxruntime_web": "npm is not installed and onnxruntime-web is not cached",
}


def without_programs(folder: Path, *words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run pytest without playwright; PATH leads to `folder` alone, so that Chromium, gcc and npm are missing too."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REQUIRE_")}
    environment |= {"PATH": str(folder), "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    environment |= {"TINYCIFAR_CACHE": str(folder / "cache"), **variables}
    command = [sys.executable, "-c", WITHOUT_PLAYWRIGHT, "-p", "no:cacheprovider", "-ra", *words]
    return subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A test file with one test for each fixture that stands for a program."""
    path = tmp_path / "tests" / "test_users.py"
    path.parent.mkdir()
    path.write_text("\n".join(f"def test_{name}({name}):\n    assert False\n" for name in REASONS))
    return path


@pytest.mark.end_to_end
def test_every_test_is_collected_without_playwright_and_programs(tmp_path):
    done = without_programs(tmp_path, "--collect-only", "--quiet", TESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    collected = set(re.findall(r"^tests/(\S+\.py)::", done.stdout, re.M))
    assert collected == {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}


@pytest.mark.slow
def test_a_test_of_a_program_that_is_missing_is_skipped_with_a_reason(users, tmp_path):
    done = without_programs(tmp_path, "-p", "conftest", users)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(re.findall(r"^SKIPPED \[1\] \S+ (.*)$", done.stdout, re.M)) == set(REASONS.values())


def test_a_browser_without_playwright_is_not_enough(users, tmp_path):
    (tmp_path / "chromium").symlink_to("/bin/false")
    done = without_programs(tmp_path, "-p", "conftest", users, "-k", "chromium")
    assert "playwright, which drives Chromium, is not installed" in done.stdout
    assert "1 skipped" in done.stdout


@pytest.mark.slow
def test_a_program_that_is_required_is_not_skipped(users, tmp_path):
    required = {f"REQUIRE_{name}": "1" for name in ("CHROMIUM", "COMPILER", "NPM")}
    done = without_programs(tmp_path, "-p", "conftest", users, **required)
    assert done.returncode == 1
    for name, reason in zip(required, REASONS.values(), strict=True):
        assert f"{reason}, and {name} is set" in done.stdout
    assert "skipped" not in done.stdout


def test_ci_requires_every_program_that_tests_are_skipped_without():
    named = {name for file in TESTS.rglob("*.py") for name in re.findall(r'\bskip\("([A-Z_]+)"', file.read_text())}
    required = set(re.findall(r"REQUIRE_(\w+)=1", (TESTS.parent / ".ci" / "run").read_text()))
    assert named == required >= {"CHROMIUM", "FASHION_MNIST", "COMPILER", "NPM"}
