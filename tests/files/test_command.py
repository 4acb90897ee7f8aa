"""How commands end: files.command."""

import subprocess
import sys
from pathlib import Path

import pytest

from files.command import Refusal, run_main
from files.tensors import DamagedFile

ROOT = Path(__file__).resolve().parents[2]


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), FileNotFoundError("no"), PermissionError("no"), DamagedFile("no"), Refusal("no")]
    + [ModuleNotFoundError("no"), FloatingPointError("no"), UnicodeDecodeError("utf-8", b"", 0, 1, "no")],
)
def test_an_expected_error_is_one_line_and_exit_status_2(error, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x.py"])
    with pytest.raises(SystemExit) as end:
        run_main(raising(error))
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and "no" in printed.err


@pytest.mark.parametrize("error", [TypeError, AssertionError, KeyError, RuntimeError, AttributeError])
def test_a_bug_shows_its_traceback(error, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py"])
    with pytest.raises(error):
        run_main(raising(error("a bug")))


def test_debug_shows_the_traceback_and_is_taken_from_the_commands_flags(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py", "--debug", "--shot", "2"])
    with pytest.raises(ValueError, match="no"):
        run_main(raising(ValueError("no")))
    assert sys.argv == ["x.py", "--shot", "2"]
    monkeypatch.setattr(sys, "argv", ["x.py", "--debug"])
    with pytest.raises(ValueError, match="no"):
        run_main(raising(ValueError("no")), own_debug=True)
    assert sys.argv == ["x.py", "--debug"]


def test_lines_of_a_message_are_indented_and_a_name_makes_none(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x.py"])
    with pytest.raises(SystemExit):
        run_main(raising(ValueError("2 problems\na.jsonl:1: x\x1b[2Jy\r\nerror: forged")))
    assert capsys.readouterr().err == "error: 2 problems\n  a.jsonl:1: x\\x1b[2Jy\\r\n  error: forged\n"


def test_an_integer_is_the_exit_status_and_other_results_are_none(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py"])
    with pytest.raises(SystemExit) as end:
        run_main(lambda: 1)
    assert end.value.code == 1
    run_main(lambda: {"a": 1})
    run_main(lambda: None)
    run_main(lambda: True)


def test_every_script_ends_so():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    wrong = []
    for name in listed.stdout.split():
        if name.startswith("tests/") or not (ROOT / name).is_file():
            continue
        _, found, end = (ROOT / name).read_text(encoding="utf-8").partition('\nif __name__ == "__main__":\n')
        if found and "run_main(main" not in end:
            wrong.append(name)
    assert wrong == [
        "dataset/demo.py",
        "scripts/commands.py",
        "studies/real_study/timing.py",
    ]  # the first runs another script, the others are children of commands


def test_a_script_prints_one_line(tmp_path):
    wrong = [
        sys.executable,
        "-m",
        "dataset.prepare",
        "--dataset",
        "MVTec",
        "--data_root",
        str(tmp_path / "nowhere"),
    ]
    ended = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True)
    assert (
        ended.returncode == 2
        and ended.stderr.count("\n") == 1
        and ended.stderr.startswith("error: data root")
    )
    ended = subprocess.run([*wrong, "--debug"], cwd=ROOT, capture_output=True, text=True)
    assert (
        ended.returncode == 1 and "Traceback" in ended.stderr and "data root" in ended.stderr.splitlines()[-1]
    )


def test_a_module_is_named_as_it_is_typed():
    refused = subprocess.run(
        [sys.executable, "-m", "app", "--tresh"], cwd=ROOT, capture_output=True, text=True
    )
    assert refused.returncode == 2 and "; python -m app --help lists the flags" in refused.stderr
