"""Tables of every kind, good and bad: what is counted, what is kept, what is said."""

from __future__ import annotations

import datetime
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from jobs.errors import InputError
from orchestrator.batch.tables.source import TableSource

ROWS = [{"prompt": "a red chair", "id": 1}, {"prompt": "eine grüne Vase, rund", "id": 2}, {"prompt": 'a "tall" lamp', "id": 3}]


def write_csv(path):
    path.write_text('prompt,id\na red chair,1\n"eine grüne Vase, rund",2\n"a ""tall"" lamp",3\n', encoding="utf-8")


def write_jsonl(path):
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")


def write_parquet(path, rows=ROWS, **options):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)


def write_gz(path):
    write_csv(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def read(location, **options):
    source = TableSource.find(str(location), **options)
    table, rows = source.scan(), list(source.rows())
    assert table.num_rows == len(rows) and [row.index for row in rows] == list(range(len(rows)))
    return table, rows


def problems(location):
    return [(row.number, row.line, row.problem) for row in read(location)[1] if row.problem]


@pytest.mark.parametrize(
    ("name", "write", "kind"),
    [
        ("t.csv", write_csv, "text"),
        ("t.csv.gz", write_gz, "text"),
        ("t.jsonl", write_jsonl, "int"),
        ("t.parquet", write_parquet, "int"),
    ],
)
def test_every_kind_of_table_gives_the_same_rows(tmp_path, name, write, kind):
    write(tmp_path / name)
    table, rows = read(tmp_path / name)
    assert [row.values["prompt"] for row in rows] == [row["prompt"] for row in ROWS]
    assert [int(row.values["id"]) for row in rows] == [1, 2, 3]
    assert table.columns == {"prompt": "text", "id": kind} and [file.name for file in table.files] == [name]
    assert [row.number for row in rows] == [1, 2, 3]


def test_a_text_file_is_a_prompt_a_line(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfa red chair\n\n  a lamp \r\nlast")
    _, rows = read(tmp_path / "t.txt")
    assert [(row.values["prompt"], row.number, row.line) for row in rows] == [
        ("a red chair", 1, 1),
        ("a lamp", 2, 3),
        ("last", 3, 4),
    ]


def test_a_folder_is_its_tables_in_order_with_their_own_row_numbers(tmp_path):
    (tmp_path / "sub").mkdir()
    write_csv(tmp_path / "b.csv")
    write_jsonl(tmp_path / "a.jsonl")
    write_parquet(tmp_path / "sub" / "c.parquet")
    for ignored in ("notes.md", ".hidden.csv", "_part.csv"):
        (tmp_path / ignored).write_text("prompt\nx\n")
    table, rows = read(tmp_path)
    assert [file.name for file in table.files] == ["a.jsonl", "b.csv", "sub/c.parquet"]
    assert table.columns == {"prompt": "text", "id": "json"}
    assert (rows[3].file, rows[3].number, rows[3].line) == ("b.csv", 1, 2) and rows[8].place == "sub/c.parquet, row 3"
    _, rows = read(f"{tmp_path}/*.csv")
    assert {row.file for row in rows} == {"b.csv", "_part.csv"}


def test_a_moved_table_is_the_same_table(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_csv(tmp_path / folder / "t.csv")
    assert read(tmp_path / "a" / "t.csv")[0] == read(tmp_path / "b")[0]


def test_cells_that_point_somewhere_start_at_their_file(tmp_path):
    source = TableSource(str(tmp_path), ("sub/t.csv",))
    assert source.resolve("a.png", "sub/t.csv") == str(tmp_path / "sub" / "a.png")
    assert source.resolve("/a.png", "sub/t.csv") == "/a.png" and source.resolve("s3://b/a.png", "t.csv") == "s3://b/a.png"
    assert TableSource("s3://bucket/x", ("t.csv",)).resolve("a.png", "t.csv") == "s3://bucket/x/a.png"


def test_delimiters_are_found_by_the_prompt_column(tmp_path):
    (tmp_path / "t.csv").write_text("prompt;id\na, b;1\n")
    assert read(tmp_path / "t.csv")[1][0].values == {"prompt": "a, b", "id": "1"}
    (tmp_path / "t.tsv").write_text("id\tprompt\n1\ta, b\n")
    assert read(tmp_path / "t.tsv")[1][0].values == {"prompt": "a, b", "id": "1"}


def test_bad_csv_rows_do_not_stop_the_others(tmp_path):
    text = 'prompt,id\na,1\nb\nc,1,2\n"d" e,4\n"multi\nline",5\n\xff\xfe,6\nlast,7\n"never closed,8\n'
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    _, rows = read(tmp_path / "t.csv")
    assert [row.values.get("prompt") for row in rows if not row.problem] == ["a", "multi\nline", "last"]
    found = problems(tmp_path / "t.csv")
    assert [(number, line) for number, line, _ in found] == [(2, 3), (3, 4), (4, 5), (6, 8), (8, 10)]
    assert found[0][2] == "the row has 1 cells, but the header has 2" and found[3][2] == "the row is not UTF-8"
    assert "expected after" in found[2][2] and "unexpected end of data" in found[4][2]


def test_bad_jsonl_rows_do_not_stop_the_others(tmp_path):
    long = b'{"prompt": "' + b"x" * (2 * 1024**2) + b'"}\n'
    (tmp_path / "t.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": \n[1]\n\xff\n' + long + b'{"prompt": "b", "x": NaN}\n')
    table, rows = read(tmp_path / "t.jsonl")
    assert [row.values for row in rows if not row.problem] == [{"prompt": "a"}, {"prompt": "b", "x": None}]
    words = [problem for _, _, problem in problems(tmp_path / "t.jsonl")]
    assert words[0].startswith("the line is not JSON") and "a JSON object was expected" in words[1]
    assert words[2:] == ["the line is not UTF-8 (byte 1)", "the line is longer than 1,048,576 bytes"]
    assert rows[-1].line == 6 and table.columns["x"] == "text"


def test_half_a_character_or_a_deep_nest_makes_a_row_unreadable_and_a_whole_character_does_not(tmp_path):
    lines = [
        r'{"prompt": "a \ud83d chair"}',
        r'{"prompt": "a", "note": {"deep": ["\uDE42"]}}',
        r'{"prompt": "b", "\udfff": 1}',
        r'{"prompt": "c \ud83d\ude42", "note": "\\ud83d"}',
        '{"prompt": "d", "note": ' + "[" * 700 + "]" * 700 + "}",
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    table, rows = read(tmp_path / "t.jsonl")
    words = [row.problem for row in rows]
    assert words[:3] == [rf"the line holds half a character ({half})" for half in (r"\ud83d", r"\ude42", r"\udfff")]
    assert words[3] is None and rows[3].values == {"prompt": "c \U0001f642", "note": r"\ud83d"}
    assert words[4] is not None and "maximum recursion depth" in words[4]
    assert list(table.columns) == ["prompt", "note"]


def test_parquet_values_become_json_values(tmp_path):
    row = {
        "prompt": "a",
        "when": datetime.datetime(2026, 1, 2, 3, 4, 5),
        "raw": b"\x00\x01",
        "nan": float("nan"),
        "tags": ["x", "y"],
        "point": {"x": 1},
        "flag": True,
    }
    write_parquet(tmp_path / "t.parquet", [row])
    table, rows = read(tmp_path / "t.parquet")
    assert rows[0].values == {
        "prompt": "a",
        "when": "2026-01-02T03:04:05",
        "raw": "AAE=",
        "nan": None,
        "tags": ["x", "y"],
        "point": {"x": 1},
        "flag": True,
    }
    kinds = {"prompt": "text", "when": "text", "raw": "text", "nan": "float", "tags": "json", "point": "json", "flag": "bool"}
    assert table.columns == kinds


def test_a_damaged_row_group_fails_its_rows_alone(tmp_path):
    path = tmp_path / "t.parquet"
    rows = [{"prompt": f"prompt number {i} {'x' * 50}"} for i in range(300)]
    write_parquet(path, rows, row_group_size=100, compression="none", use_dictionary=False)
    metadata = pyarrow.parquet.read_metadata(path)
    start = metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 64] = b"\xff" * 64
    path.write_bytes(data)
    _, found = read(path)
    assert [row.index for row in found if row.problem] == list(range(100, 200)) and found[250].values == rows[250]
    assert found[100].problem.startswith("row group 1 cannot be read")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "Prompt,id\na,1\n", r"has no column 'prompt' \(did you mean Prompt\?\); its columns are: Prompt, id"),
        ("t.csv", "", "is empty or begins with an empty line"),
        ("t.csv", "prompt,prompt\na,b\n", "has two columns 'prompt'"),
        ("t.csv", bytes(range(256)), "begins with a line that is not UTF-8 text; save the table as csv in UTF-8"),
        ("t.csv", "prompt,größe\na,1\n".encode("latin-1"), "begins with a line that is not UTF-8 text"),
        ("t.jsonl", '{"text": "a"}\n', r"has no column 'prompt'; its columns are: text\. .*--prompt-column"),
        ("t.parquet", "not parquet", "is not a readable parquet file"),
        ("t.xlsx", "x", r"of a kind that is not read \(\.xlsx\); give \.txt"),
        ("t.csv", "prompt\na\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("t.txt", "a\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    ],
)
def test_a_table_that_is_none_is_refused_by_name(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f"^{path} .*{words}"):
        TableSource.find(str(path)).scan()


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("missing.csv", "There is no prompt table"),
        ("*.csv", "No file matches"),
        ("", "holds no table"),
        ("nope://x/t.csv", "cannot be opened: Protocol not known: nope"),
    ],
)
def test_a_place_without_a_table_is_refused(tmp_path, location, words):
    with pytest.raises(InputError, match=words):
        TableSource.find(location if "://" in location else f"{tmp_path}/{location}")


def test_another_prompt_column(tmp_path):
    (tmp_path / "t.csv").write_text("caption\na lamp\n")
    table, rows = read(tmp_path / "t.csv", prompt_column="caption")
    assert rows[0].values == {"caption": "a lamp"} and table.columns == {"caption": "text"}
