"""Hostile names where they are printed: files.cells, the log's formatter and everything that writes tables."""

import csv
import io
import logging

import pytest

from comparison.arms import read_arm
from evaluation.picture_scores import PictureScore, write_picture_scores
from evaluation.results import format_table, write_metrics
from files.cells import CellWriter, cell, plain
from files.logs import FILE_ALONE, close_logger, open_logger


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe 陶瓷环", "größe 陶瓷环"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[31m\0\x85\u2028", "\\x1b[31m\\x00\\x85\\u2028"),
        ("gnp\u202e.exe", "gnp\\u202e.exe"),
        ("\udce9.png", "\\udce9.png"),
        ("a\u00a0b 👩‍🔧", "a\u00a0b 👩‍🔧"),
    ],
)
def test_text_is_one_line_without_control_characters(text, shown):
    assert plain(text) == shown
    plain(text).encode()


@pytest.mark.parametrize("begin", list("=+-@＝＋－＠") + [" =", "\t=", "\n="])
def test_no_cell_begins_as_a_formula(begin):
    assert cell(f"{begin}cmd|' /C calc'!A0").startswith("'")
    assert cell(f"{begin}1+1").startswith("'")


@pytest.mark.parametrize(
    "value", [-0.5, 1e-7, 3, None, "-0.5", "+1", "-1e-05", "-inf", "nan", "bottle", "a-b", ""]
)
def test_numbers_and_ordinary_names_stay_as_they_are(value):
    assert cell(value) == value


def test_the_files_of_an_evaluation_hold_no_formula_and_no_second_line(tmp_path):
    name = "=HYPERLINK(1)\nx"
    path = write_picture_scores(
        tmp_path, "Own", "a.pth", [PictureScore(name, "@class", None, -0.5, -1e-9, 2.0)]
    )
    lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    assert lines[1] == ["'=HYPERLINK(1)\\nx", "'@class", "", "-0.5", "-1e-09", "2.0"]
    result = {"classes": {"+class": {"pixel_ap": 0.5}}, "mean": {"pixel_ap": 0.5}}
    write_metrics(tmp_path, "-own", "=a.pth", result, {})
    lines = list(csv.reader((tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    assert lines[1][:3] == ["'-own", "'=a.pth", "'+class"]
    assert format_table([{"class": "a\nb", "AUC": 1.0}]).count("\n") == 1


def test_rows_of_a_table_keep_csvs_quoting():
    text = io.StringIO()
    CellWriter(text).writerows([["a,b", 'c"d', -1.5], ["=1+1", None, 2]])
    assert text.getvalue() == '"a,b","c""d",-1.5\r\n\'=1+1,,2\r\n'


def test_a_name_among_a_log_lines_arguments_begins_no_line(tmp_path, capsys):
    logger = open_logger("cells", tmp_path / "a.log")
    logger.info("%s: %d of %s\nsecond", "a\n2026-01-01 INFO forged", 3, tmp_path / "x\ny")
    logger.error("stopped", extra=FILE_ALONE)
    close_logger(logger)
    written = (tmp_path / "a.log").read_text(encoding="utf-8").splitlines()
    assert len(written) == 3 and "a\\n2026-01-01 INFO forged: 3 of" in written[0] and "stopped" in written[2]
    assert "stopped" not in capsys.readouterr().out
    assert (
        logging.Formatter("%(message)s").format(logging.makeLogRecord({"msg": "%s", "args": ("a\nb",)}))
        == "a\nb"
    )


def test_an_arms_name_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_arm("a\nb=" + str(tmp_path / "nothing*"))
