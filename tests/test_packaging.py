"""`pip install .`: what pyproject.toml declares is what `make` installs and what is there."""

import re
import sys
from pathlib import Path

import pytest
import tomllib

from files import console

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def needed(name):
    """The lines of a requirements file, without comments and other files."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith(("#", "-r"))}


def test_installing_the_project_needs_what_make_installs():
    assert set(PROJECT["project"]["dependencies"]) == needed("requirements.txt")


@pytest.mark.parametrize("extra", sorted(PROJECT["project"]["optional-dependencies"]))
def test_an_extra_needs_what_its_requirements_file_names(extra):
    assert set(PROJECT["project"]["optional-dependencies"][extra]) == needed(f"requirements-{extra}.txt")


def test_every_module_and_room_is_installed():
    setuptools = PROJECT["tool"]["setuptools"]
    assert set(setuptools["py-modules"]) == {path.stem for path in ROOT.glob("*.py")}
    rooms = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests"}
    assert {pattern.rstrip("*") for pattern in setuptools["packages"]["find"]["include"]} == rooms


def test_every_script_has_a_console_command():
    scripts = {path for path in ROOT.glob("*.py") if "run_main(" in path.read_text(encoding="utf-8")}
    commands = {f"aaclip-{path.stem.replace('_', '-')}" for path in scripts}
    assert set(PROJECT["project"]["scripts"]) == commands


@pytest.mark.parametrize("command", sorted(PROJECT["project"]["scripts"]))
def test_a_console_command_runs_the_script_of_its_name(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"/usr/bin/{command}", "--help"])
    with pytest.raises(SystemExit) as end:
        console.run_script()
    assert end.value.code == 0 and re.search(r"usage: ", capsys.readouterr().out)
