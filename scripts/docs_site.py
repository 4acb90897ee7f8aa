"""A hook of mkdocs: links of docs/ that lead to other files of the project, which the site does not hold."""

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **unread: Any) -> str:
    """A page whose links out of docs/ are the names of files; called by mkdocs.

    Raises:
        FileNotFoundError: there is no such file.
    """
    docs, place = Path(config["docs_dir"]).resolve(), Path(page.file.abs_src_path).resolve().parent

    def named(link: re.Match) -> str:
        target = (place / link[2]).resolve()
        if target.is_relative_to(docs):
            return link[0]
        if not target.exists():
            raise FileNotFoundError(
                f"{page.file.src_path}: {link[2]} is no file of the project; correct the link"
            )
        name = target.relative_to(docs.parent)
        return f"`{name}`" if link[1].strip("`") == str(name) else f"{link[1]} (`{name}`)"

    return LINK.sub(named, markdown)
