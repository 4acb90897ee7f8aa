"""How a benchmark measures: seconds in turn, the fastest matrix product, the peak memory of a process of its own."""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from utils import choose_device

PRECISIONS = ("fp32", "tf32", "bf16")
# A block's widest at batch 2 and 518 px, and one that suits every library.
PRODUCTS = ((2738, 1024, 4096), (2048, 2048, 2048))
PRODUCTS_ON_GPU = (*PRODUCTS, (8192, 8192, 8192))
OUT_OF_MEMORY = "out of memory"
Once = Callable[[], Any]


def check_precision(precision: str, device: torch.device) -> None:
    """Raises ValueError for a precision that the device does not have."""
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"--precisions tf32 on {device}: NVIDIA GPUs alone have it; give fp32 or bf16")


def device_of(args: argparse.Namespace) -> torch.device:
    """The device of --device. Raises ValueError where it has not all of --precisions."""
    device = choose_device(args.device)
    for precision in args.precisions:
        check_precision(precision, device)
    return device


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Float32 products in TF32 for "tf32", in float32 otherwise; as before afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def seconds_of(once: Once, device: torch.device) -> float:
    """Seconds of one call: the processor's on a CPU, the clock's where a GPU works."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = clock()
    once()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def product_speed(device: torch.device, precision: str = "fp32") -> float:
    """FLOPs a second of the fastest of a few matrix products in a precision."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    on_gpu, found = device.type == "cuda", []
    for rows, inner, columns in PRODUCTS_ON_GPU if on_gpu else PRODUCTS:
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        right = torch.randn(inner, columns, device=device, dtype=dtype)
        with products_in(precision):
            times = [
                seconds_of(lambda a=left, b=right: torch.mm(a, b), device) for _ in range(5 if on_gpu else 1)
            ]
        found.append(2 * rows * inner * columns / min(times))
    return max(found)


def in_turn(
    ways: dict[Any, Once],
    repeats: int,
    device: torch.device,
    between: Once | None = None,
    warm_up: bool = True,
) -> dict[Any, float | str]:
    """Median seconds of every way, one call of each after the other.

    Args:
        ways: what a GPU has too little memory for is taken out, so that the others have its share.
        between: called after every turn.
        warm_up: one turn more, the first, which does not count.

    Returns:
        {way: seconds, or "out of memory"}
    """
    times: dict[Any, list[float]] = {way: [] for way in ways}
    for _ in range(repeats + warm_up):
        for way in list(ways):
            try:
                times[way].append(seconds_of(ways[way], device))
            except torch.OutOfMemoryError:
                del ways[way]
                torch.cuda.empty_cache()
        if between is not None:
            between()
    return {
        way: statistics.median(own[warm_up:]) if way in ways else OUT_OF_MEMORY for way, own in times.items()
    }


def peak_so_far() -> float:
    """The largest resident size of this process until now, in MB.

    Raises:
        OSError: the system is not Linux, which alone counts it from the program's own start.
    """
    return _own_memory("VmHWM")


def memory_now() -> float:
    """The resident size of this process, in MB; raises as `peak_so_far`."""
    return _own_memory("VmRSS")


def peak_of_process(make: Callable[[], Once], device: torch.device) -> float | str:
    """Peak MB, of the process or of its GPU, after two calls of what `make` returns; "out of memory" if too much."""
    try:
        once = make()
        for _ in range(2):
            once()
    except torch.OutOfMemoryError:
        return OUT_OF_MEMORY
    on_gpu = device.type == "cuda"
    return round(torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_so_far(), 1)


def peak_told_by(
    module: str, args: argparse.Namespace, child: Sequence[str], images: int, precision: str
) -> float | str:
    """`peak_of_process` as a process of its own tells it, with the network and the device of `args`.

    Args:
        child: values of --child, which says what that process makes.
    """
    flags = ["--child", *child, "--precisions", precision, "--batch_sizes", str(images)]
    for flag in ("model_name", "img_size", "device"):
        value = getattr(args, flag)
        flags += [] if value is None else [f"--{flag}", str(value)]
    return told_by(module, *flags)


def _own_memory(key):
    try:
        status = Path("/proc/self/status").read_text()
    except OSError as error:
        raise OSError(
            "peak memory is read from /proc/self/status, which Linux alone has: measure there"
        ) from error
    return int(re.search(key + r":\s*(\d+) kB", status)[1]) / 1024


def told_by(module: str, *words: str) -> Any:
    """What a process of its own prints as its last line, read as JSON: `python -m MODULE WORDS`.

    Raises:
        OSError: it failed; with the end of what it said.
    """
    root = Path(__file__).resolve().parent.parent
    command: Sequence[str] = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        own = [line for line in lines if line.startswith("error: ")]  # torchrun's report stands below it
        said = " ".join(own[:1] or lines[-3:])
        raise OSError(f"{' '.join(command[1:])} ended with {done.returncode}: {said}")
    return json.loads(done.stdout.splitlines()[-1])
