"""The quick part of the table of promises: a few cases of every row, in a process of its own that can be killed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="rows of semantic fill need requirements-synthesis.txt")

ROOT = Path(__file__).resolve().parent.parent
PROMISES = sorted(
    name
    for path in (ROOT / "tests" / "promises").glob("*.py")
    for name in re.findall(r'^@promise\(\s*"(\w+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
)


@pytest.fixture(scope="session")
def quick(tmp_path_factory):
    """Folder of the quick table's rows."""
    folder = tmp_path_factory.mktemp("promises")
    command = [sys.executable, "tests/reliability.py", "--quick", "--out", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert (folder / "table.md").is_file(), ended.stdout + ended.stderr
    return folder


@pytest.mark.parametrize("name", PROMISES)
def test_a_promise_holds_in_a_few_cases(quick, name):
    row = json.loads((quick / f"{name}.json").read_text(encoding="utf-8"))
    assert row["complete"] and row["tried"] and not row["failed"], row["failures"]


def test_every_promise_is_in_the_table_and_in_the_document(quick):
    table = (quick / "table.md").read_text(encoding="utf-8")
    document = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert len(PROMISES) >= 18
    for name in PROMISES:
        assert f"(`{name}`)" in table and f"`{name}`" in document
