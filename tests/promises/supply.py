"""The supply chain: what is installed from the lock files is what was looked at."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from promises.rows import ROOT, Bench, promise

LOCKS = {"requirements.lock": "requirements.txt", "requirements-synthesis.lock": "requirements-synthesis.txt"}


@promise("supply", "supply chain: lock files with hashes, ruff's S rules", "0 open")
def supply(bench: Bench) -> Iterator[tuple[str, Callable]]:
    for lock, loose in LOCKS.items():
        yield f"{lock}: every package pinned, with hashes, from no named host", partial(pinned, ROOT / lock)
        yield f"{lock} holds what {loose} asks for", partial(complete, ROOT / lock, ROOT / loose)
    yield "ruff's S rules are on", rules_on
    yield "ruff finds nothing", clean


def entries(lock: Path) -> dict[str, str]:
    """{package: its lines} of a lock file."""
    text = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return {f"{number} {re.split('[=; @]', line)[0]}": line for number, line in enumerate(lines)}


def pinned(lock: Path) -> str:
    found = entries(lock)
    assert len(found) > 20, f"{len(found)} packages"
    for name, line in found.items():
        assert re.match(r"[\w.\-\[\]]+==[\w.+!]+", line), f"{name} is not pinned: {line[:80]}"
        assert "--hash=sha256:" in line, f"{name} has no hash"
        assert "://" not in line, f"{name} names a host"
    return "pinned"


def requirement(line: str) -> str:
    """A requirement's package, as registries write it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~;\[ ]", line.strip())[0]).lower()


def complete(lock: Path, loose: Path) -> str:
    wanted = set()
    for line in loose.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            complete(lock, loose.with_name(line[3:].strip()))
        elif line.strip() and not line.startswith("#"):
            wanted.add(requirement(line))
    missing = wanted - {requirement(line) for line in entries(lock).values()}
    assert not missing, f"{lock.name} lacks {sorted(missing)}: make lock"
    return "complete"


def rules_on() -> str:
    assert '"S"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8"), "pyproject.toml does not select S"
    return "on"


def clean() -> str:
    ruff = shutil.which("ruff", path=f"{Path(sys.executable).parent}:/usr/bin") or "ruff"
    found = subprocess.run([ruff, "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-500:]
    return "clean"
