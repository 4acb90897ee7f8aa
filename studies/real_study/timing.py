"""Time one command in a process of its own: seconds of a training step, seconds of tests, and the most memory it took.

python -m studies.real_study.timing FILE COMMAND...       (COMMAND... and FILE's content are JSON)
"""

import json
import resource
import sys
import time
from collections.abc import Sequence

import torch

from files.atomic import write_text
from scripts.commands import run_command

GB = 1e9


def peak_memory() -> float:
    """GB this process took at most: the GPU's if there is one, else the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / GB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB


def main(argv: Sequence[str]) -> None:
    file, *commands = argv
    seconds = []
    for script, words in map(json.loads, commands):
        begin = time.perf_counter()
        run_command(script, words)
        seconds.append(time.perf_counter() - begin)
    write_text(file, json.dumps({"seconds": seconds, "peak_gb": round(peak_memory(), 2)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
