"""What the documents tell a user to type exists, the page of flags is current, and the site holds every page."""

import argparse
import json
import re
from functools import cache

import pytest
import yaml
from blocks import DOCS, ROOT, Block, blocks, command_lines, command_of

from scripts import docs_site, flag_reference

TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
NOTEBOOK = DOCS / "quick_start.ipynb"


parser_of = cache(flag_reference.parser_of)


def unknown_flags(words):
    """The flags of a command line that its command does not have."""
    command, rest = command_of(words)
    if command not in flag_reference.COMMANDS:
        return []
    known = {
        flag
        for _, parser in flag_reference.parsers_within(parser_of(command))
        for flag in parser._option_string_actions
    } | {"--debug"}
    given = rest[: rest.index("--")] if "--" in rest else rest
    return [word for word in given if word.startswith("--") and word.partition("=")[0] not in known]


def sources(notebook):
    """The code cells of a notebook, as text."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_flag_that_a_page_types_is_one_of_its_command(page):
    wrong = [
        f"{words[0]} {flag}"
        for block in blocks(page)
        if block.language == "sh"
        for words in command_lines(block.text)
        for flag in unknown_flags(words)
    ]
    assert not wrong


def test_a_flag_that_no_command_has_is_found():
    assert unknown_flags(["train.py", "--no_such_flag", "1", "--seed", "1"]) == ["--no_such_flag"]
    assert command_lines("FOO=1 python -m run_folder list x  # a\ncd y\n") == [
        ["-m", "run_folder", "list", "x"]
    ]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_every_block_of_a_tutorial_is_run_or_says_why_not(page):
    found = [block for block in blocks(page) if block.language in ("sh", "python", "yaml")]
    assert any(block.mark == "tiny" for block in found)
    assert not [block.text for block in found if block.mark is None]
    assert len(blocks(page)) == len(re.findall(r"^```\w", page.read_text(encoding="utf-8"), re.M))


def test_the_notebooks_cells_type_flags_that_exist():
    lines = [line[1:] for cell in sources(NOTEBOOK) for line in cell.splitlines() if line.startswith("!")]
    words = [words for line in lines for words in command_lines(line)]
    assert len(words) >= 4 and not [flag for line in words for flag in unknown_flags(line)]


def test_the_notebooks_python_compiles():
    for cell in sources(NOTEBOOK):
        compile("\n".join(line for line in cell.splitlines() if line[:1] not in "!%"), "cell", "exec")


def test_the_page_of_flags_is_what_the_commands_have(monkeypatch):
    monkeypatch.setattr(flag_reference, "parser_of", parser_of)
    page = flag_reference.page()
    assert flag_reference.PAGE.read_text(encoding="utf-8") == page, "run python -m scripts.flag_reference"


def test_a_flags_row_says_its_values_default_and_help():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0, help="of everything | drawn")
    parser.add_argument("--kind", choices=["a", "b"], required=True, help="which")
    assert list(flag_reference.flags_of(parser)) == [
        ("options", "`--seed`", "`0` | of everything \\| drawn"),
        ("options", "`--kind {a,b}`", "required | which"),
    ]


def test_the_site_lists_every_page_once():
    def pages(entry):
        values = entry.values() if isinstance(entry, dict) else entry
        return [values] if isinstance(entry, str) else [page for value in values for page in pages(value)]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_the_readme_links_every_page_and_stays_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for page in DOCS.rglob("*.md") if (name := str(page.relative_to(ROOT))) not in text]
    assert len(text.splitlines()) <= 160


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_blocks_are_found_with_their_marks(tmp_path, monkeypatch):
    monkeypatch.setattr("blocks.ROOT", tmp_path)
    (tmp_path / "a.md").write_text(
        "<!-- tiny x.py -->\n```python\nprint()\n```\n\n```sh\nls\n```\n", encoding="utf-8"
    )
    assert blocks(tmp_path / "a.md") == [
        Block("a.md", "tiny", "x.py", "python", "print()\n"),
        Block("a.md", None, None, "sh", "ls\n"),
    ]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_a_dockerfile_copies_what_is_there_and_starts_a_command(name):
    """Read, not built: there is no docker in the tests."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    assert steps[0][0] == "FROM" and {word for word, _ in steps} <= {
        "FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "ENTRYPOINT", "CMD"
    }  # fmt: skip
    assert all((ROOT / rest.split()[0]).exists() for word, rest in steps if word == "COPY")
    start = {word: json.loads(rest) for word, rest in steps if word in ("ENTRYPOINT", "CMD")}
    assert start["ENTRYPOINT"] == ["python"] and (ROOT / start["CMD"][0]).is_file()
    installed = [word for line in re.findall(r"-r (\S+)", text) for word in line.split()]
    assert installed and all((ROOT / file).is_file() for file in installed)


def test_links_out_of_the_documents_become_the_names_of_files_and_missing_ones_are_refused():
    class Page:
        class file:
            src_path, abs_src_path = "method.md", str(DOCS / "method.md")

    told = docs_site.on_page_markdown("[a](../README.md) [b](predict.md#x)", Page, {"docs_dir": str(DOCS)})
    assert told == "a (`README.md`) [b](predict.md#x)"
    with pytest.raises(FileNotFoundError, match="method.md: ../no_such.md is no file"):
        docs_site.on_page_markdown("[a](../no_such.md)", Page, {"docs_dir": str(DOCS)})
