"""What every benchmark writes: the command, the machine and the versions, a table for people, JSON for programs."""

import argparse
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from files.atomic import write_text

NOT_MEASURED = "not measured"
LIBRARIES = ("numpy", "scikit-learn", "OpenCV", "torchvision", "Pillow")  # whose versions a table may say
BUSY = "other work may have run beside it, so the ratios count"


def command_line(module: str, argv: Sequence[str] | None) -> str:
    """How the user called a benchmark. `argv`: what its `main` was given; the process's own words when None."""
    typed = sys.argv[1:] if argv is None else argv
    return " ".join(["python -m", module, shlex.join(typed)]).strip()


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What a figure was taken on: {"device", "machine", "threads", "torch", "clock"}."""
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "CPU",
        "machine": f"{processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "clock": "wall clock" if on_gpu else "processor time",
    }


def head_of(module: str, argv: Sequence[str] | None, args: argparse.Namespace, device: torch.device) -> dict:
    """What a result of turns begins with: the command, the network and the turns, the machine."""
    flags = {key: getattr(args, key) for key in ("model_name", "img_size", "repeats", "cold")}
    return {"command": command_line(module, argv), **flags, **machine(device)}


def processor() -> str:
    """The processor's name, where the system tells it, and its architecture."""
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return f"{found[1].strip()} ({platform.machine()})" if found else platform.machine()


def said(result: dict[str, Any]) -> str:
    """One sentence of a result's command and machine: the head of every table."""
    versions = "".join(f", {key} {result[key]}" for key in LIBRARIES if key in result)
    return (
        f"Written by `{result['command']}` on {result['device']}: torch {result['torch']}{versions}, "
        f"{result['threads']} thread(s), {result['machine']}. Seconds are of the {result['clock']}; {BUSY}."
    )


def turns(result: dict[str, Any]) -> str:
    """How often the ways of a result took their turns."""
    return f"median of {result['repeats']}, in turn" + (", none to warm up" if result["cold"] else "")


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table; None is "not measured"."""
    lines = ["| " + " | ".join(header) + " |", "|" + "--|" * len(header)]
    for row in rows:
        lines.append("| " + " | ".join(NOT_MEASURED if cell is None else str(cell) for cell in row) + " |")
    return lines


def finish(name: str, result: dict[str, Any], lines: Sequence[str], out: str | None) -> str:
    """Print a result's table, and write `name`.json and `name`.md where a folder is named; returns the table."""
    text = "\n".join(lines) + "\n"
    if out:
        write_text(Path(out) / f"{name}.json", json.dumps(result, indent=1) + "\n")
        write_text(Path(out) / f"{name}.md", text)
    print(text)
    return text


def finish_flat(name: str, title: str, result: dict[str, Any], out: str | None) -> None:
    """Print {what: value} as one JSON object, and write `name`.json and `name`.md where a folder is named."""
    text = json.dumps(result, indent=1)
    print(text)
    if out:
        write_text(Path(out) / f"{name}.json", text + "\n")
        rows = [(key, value) for key, value in flattened(result) if key != "command"]
        lines = [f"# {title}", "", f"Written by `{result['command']}`.", "", *table(("what", "value"), rows)]
        write_text(Path(out) / f"{name}.md", "\n".join(lines) + "\n")


def flattened(result: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(key, value) of a result; of one inside it the keys stand behind one another."""
    for key, value in result.items():
        if isinstance(value, dict):
            yield from ((f"{key}, {inner}", one) for inner, one in flattened(value))
        else:
            yield key, value
