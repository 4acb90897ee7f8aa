"""Text of other systems and editors: files.text."""

import codecs

import pytest

from files.text import decoded, parse_json, read_json, read_mapping, read_table, read_text, shown

TEXT = '{"größe": 1}\n{"é": 2}\n'


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
        codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
    ],
)
def test_the_encodings_and_line_ends_of_all_systems_give_the_same_text(data):
    assert decoded(data, "a.jsonl") == TEXT


def test_another_encoding_is_refused_with_line_byte_and_guess():
    with pytest.raises(ValueError) as error:
        decoded(b"a\r\nb\rcaf\xe9 x", "a.jsonl")
    assert str(error.value) == (
        "a.jsonl:3: byte 4 of the line, 0xe9, is not UTF-8 (it would be 'é' in Windows-1252, 'È' in Mac Roman): save "
        "the file as UTF-8"
    )
    with pytest.raises(ValueError, match="a: byte 5 does not belong to UTF-16-LE"):
        decoded(codecs.BOM_UTF16_LE + b"{\0}\0\0", "a")


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_text(tmp_path)


def test_a_line_separator_inside_a_json_string_ends_no_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "x\u2028y\x85z"}\n', encoding="utf-8")
    assert read_text(tmp_path / "a.jsonl").count("\n") == 1


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "a": 3}}]'])
def test_a_key_that_stands_twice_is_refused(text):
    with pytest.raises(ValueError, match="key 'a' stands twice in one object"):
        parse_json(text)


def test_json_that_is_none_is_refused_by_its_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"a\.json is not JSON"):
        read_json(tmp_path / "a.json")


def test_yaml_aliases_that_would_fill_the_memory_are_refused(tmp_path):
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"a\.yaml: .*alias \*a0 is not read"):
        read_mapping(tmp_path / "a.yaml", "names")


def test_json_with_tabs_and_yaml_give_the_same_mapping(tmp_path):
    (tmp_path / "a.JSON").write_text('{\n\t"A": {"x": "y"}\n}')
    (tmp_path / "a.yml").write_bytes(codecs.BOM_UTF8 + b"A:\r\n  x: y\r\n")
    assert read_mapping(tmp_path / "a.JSON", "") == read_mapping(tmp_path / "a.yml", "") == {"A": {"x": "y"}}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_is_read_whatever_stands_between_its_cells(tmp_path, delimiter):
    lines = ["b,a ,c", '1,"x, y; z",', "", "2,z,3"]
    text = "\r\n".join(line if '"' in line else line.replace(",", delimiter) for line in lines)
    text = text.replace('1,"x, y; z",', f'1{delimiter}"x, y; z"{delimiter}')
    (tmp_path / "t.csv").write_bytes(codecs.BOM_UTF16_LE + text.encode("utf-16-le"))
    assert read_table(tmp_path / "t.csv", {"a", "b"}) == [
        (f"{tmp_path / 't.csv'}:2", {"b": "1", "a": "x, y; z", "c": ""}),
        (f"{tmp_path / 't.csv'}:4", {"b": "2", "a": "z", "c": "3"}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n1\n", r"columns are \['a'\]: expected a, b"),
        ("a,b,a\n1,2,3\n", "columns are"),
        ("a,b\n1\n", r"t\.csv:2: 1 cells, 2 columns"),
        ('a,b\n1,"x\n', r"t\.csv:2: not a table"),
        ("", "it is empty"),
    ],
)
def test_a_table_of_another_form_is_refused_by_line(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "t.csv", {"a", "b"})


def test_long_and_deep_values_are_cut_in_messages():
    deep = []
    for _ in range(50):
        deep = [deep, deep]
    assert len(shown(deep)) < 100 and len(shown("x" * 10_000)) <= 120
