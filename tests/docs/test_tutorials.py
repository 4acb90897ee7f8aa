"""The tutorials are done as a reader does them, on rendered data and the tiny CLIP: `make docs-test`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import DOCS, ROOT, blocks

TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
LEFT_OUT = ("tests/", "results/", ".ci/")
LIMIT_S = 900  # for one block


@pytest.fixture
def checkout(tmp_path):
    """A copy of the project as a reader has it, without its history."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.split("\0"):
        if name and not name.startswith(LEFT_OUT) and (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def run(words, folder):
    """Run a block there, with this Python's commands; its output where it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    ended = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert ended.returncode == 0, f"{words[-1]}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorials_blocks_run_one_after_another(page, checkout):
    if page.stem == "semantic_fill":
        pytest.importorskip("diffusers", reason="semantic fill needs requirements-synthesis.txt")
    for block in blocks(page):
        if block.mark != "tiny":
            continue
        if block.file:
            (checkout / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            run(["bash", "-euo", "pipefail", "-c", block.text], checkout)
        else:
            run([sys.executable, "-c", block.text], checkout)


@pytest.mark.slow
def test_the_notebooks_cells_run_one_after_another(checkout):
    """But those that fetch the project and install it."""
    cells = json.loads((DOCS / "quick_start.ipynb").read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] != "code" or "set-up" in cell["metadata"].get("tags", ()):
            continue
        shell = text.startswith("!")
        lines = "\n".join(line.removeprefix("!") for line in text.splitlines())
        run(["bash", "-euo", "pipefail", "-c", lines] if shell else [sys.executable, "-c", text], checkout)
