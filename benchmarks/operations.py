"""Which operation of a computation takes how much: torch's profiler as a table of its largest parts."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import finish, machine, said, table

LARGEST = 15


def operations_of(
    once: Callable[[], Any], device: torch.device, largest: int = LARGEST
) -> list[dict[str, Any]]:
    """The operations a call spends most time in by themselves.

    Returns:
        [{"operation", "calls", "ms", "share"}], the largest first; on a GPU the time is the GPU's.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities) as found:
        once()
        if on_gpu:
            torch.cuda.synchronize()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = sorted(found.key_averages(), key=lambda row: getattr(row, key), reverse=True)
    whole = sum(getattr(row, key) for row in rows) or 1
    return [
        {
            "operation": row.key,
            "calls": row.count,
            "ms": round(getattr(row, key) / 1000, 3),
            "share": round(getattr(row, key) / whole, 4),
        }
        for row in rows[:largest]
    ]


def write_profile(
    name: str,
    calls: dict[str, Callable[[], Any]],
    result: dict[str, Any],
    device: torch.device,
    out: str | None,
) -> None:
    """Print the tables of some calls' largest operations, and write them as `name`.json and `name`.md.

    Args:
        calls: {title: function}; each is called once before it is looked at.
        result: has the command and the machine.
    """
    lines = ["# Operations", "", said(result), ""]
    kept = {key: result[key] for key in ("command", *machine(device))} | {"calls": {}}
    for title, once in calls.items():
        once()
        rows = kept["calls"][title] = operations_of(once, device)
        shown = ((row["operation"], row["calls"], row["ms"], f"{100 * row['share']:.1f} %") for row in rows)
        lines += [f"## {title}", "", *table(("operation", "calls", "ms", "share"), shown), ""]
    finish(name, kept, lines[:-1], out)
