"""The table of promises: what was tried against each and how often it failed, kept in results/reliability/*.json."""

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "results" / "reliability"


def record(part, promise, tried, failed, how):
    """Keep one row in results/reliability/`part`.json; a later run replaces the row of its promise."""
    path = RESULTS / f"{part}.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows[promise] = {"tried": tried, "failed": failed, "how": how}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n", encoding="utf-8")


def table():
    """Markdown of every row kept."""
    lines = ["| promise | tried | failed | how |", "|--|--|--|--|"]
    for path in sorted(RESULTS.glob("*.json")):
        for promise, row in json.loads(path.read_text(encoding="utf-8")).items():
            lines.append(f"| {promise} | {row['tried']:,} | {row['failed']:,} | {row['how']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
