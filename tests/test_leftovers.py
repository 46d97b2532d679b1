"""Tests that the test suite leaves no files in the system's temporary folder."""

import os
import subprocess
import sys

from conftest import ROOT

# Test file -> pytest's `-k` expression. The expressions select tests that left temporary files in earlier versions of charlm.
# The selected tests use a missing corpus, TFDS (TensorFlow Datasets), and the benchmark's programs.
SELECTED_TESTS = {
    "tests/config/test_keys.py": "changing_a_key and corpus.tfds",
    "tests/data/test_corpora.py": "is_cached_by_its_hash or unknown_feature_is_refused",
    "tests/test_benchmark.py": "temporary",
}


def test_the_suite_leaves_no_temporary_files(tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        f"--basetemp={tmp_path / 'tests'}",
    ]
    command += [
        "-m",
        "not slow",
        "-k",
        " or ".join(f"({expression})" for expression in SELECTED_TESTS.values()),
        *SELECTED_TESTS,
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(command, cwd=ROOT, env=environment | {"TMPDIR": str(temporary)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 passed" in result.stdout
    assert list(temporary.iterdir()) == []
