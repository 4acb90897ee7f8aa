"""The one way a command sets up its log: plain lines on the console, dated lines in a file where one is kept."""

import copy
import logging
import sys
from pathlib import Path

from tqdm import tqdm

from files.atomic import failures_explained
from files.cells import plain

FILE_ALONE = {
    "file_alone": True
}  # `extra` of a line for the log file: its console shows the same in other ways


class PlainFormatter(logging.Formatter):
    """Formats a line so that no text among its arguments can begin another one."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            record = copy.copy(record)
            record.args = tuple(plain(one) if isinstance(one, str | Path) else one for one in record.args)
        return super().format(record)


class ConsoleHandler(logging.Handler):
    """Log lines on standard output that do not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_alone", False):
            return
        tqdm.write(self.format(record), file=sys.stdout)


PROGRAM = "aaclip"


def quiet_logger() -> logging.Logger:
    """The program's logger where no log is kept: until `open_logger` opens it, nothing below a warning is shown."""
    return logging.getLogger(PROGRAM)


def open_logger(name: str, file: Path | str | None = None, level: int = logging.INFO) -> logging.Logger:
    """The logger of this name, writing to the console alone or to `file` too (appended, its folder made if missing).

    What an earlier command of the same process opened under the name is closed first.
    """
    logger = logging.getLogger(name)
    close_logger(logger)
    logger.setLevel(level)
    logger.propagate = False
    console = ConsoleHandler()
    console.setFormatter(PlainFormatter("%(message)s"))
    logger.handlers = [console]
    if file is not None:
        with failures_explained(Path(file)):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            to_file = logging.FileHandler(file, encoding="utf-8")
        to_file.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
        logger.handlers.append(to_file)
    return logger


def close_logger(logger: logging.Logger) -> None:
    """Close and detach a logger's handlers, so that a second run in one process does not write to the first's file."""
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
