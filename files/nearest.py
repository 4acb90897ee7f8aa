"""What a mistyped name may have meant."""

import difflib
from collections.abc import Iterable


def do_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint which of the known names may be meant, capitals aside: " (do you mean VisA?)", or ""."""
    by_lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(word.lower(), by_lower, 3)
    return f" (do you mean {' or '.join(by_lower[one] for one in close)}?)" if close else ""
