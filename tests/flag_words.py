"""Command lines written as Python writes arguments."""


def words(**flags):
    """The words of some flags: True stands for a flag alone, a list for several words, False for nothing."""
    line = []
    for name, value in flags.items():
        if value is False:
            continue
        given = [] if value is True else value if isinstance(value, list | tuple) else [value]
        line += [f"--{name}", *map(str, given)]
    return line
