"""Tables of every kind, good and bad: what is counted, what is kept, what is said."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import io
import json
import lzma
import socket

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import InputError
from jobs.words.prompts import check_prompt
from orchestrator.batch.storage import urls
from orchestrator.batch.tables.readers import read_records
from orchestrator.batch.tables.source import TableSource

ROWS = [{"prompt": "a red chair", "id": 1}, {"prompt": "eine grüne Vase, rund", "id": 2}, {"prompt": 'a "tall" lamp', "id": 3}]


def write_csv(path):
    path.write_text('prompt,id\na red chair,1\n"eine grüne Vase, rund",2\n"a ""tall"" lamp",3\n', encoding="utf-8")


def write_jsonl(path):
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")


def write_parquet(path, rows=ROWS, **options):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)


def compress(name, data):
    """What a tool of that ending writes."""
    tools = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    zstd = lambda plain: pyarrow.compress(plain, codec="zstd", asbytes=True)  # noqa: E731
    return tools.get(name[name.rindex(".") :].lower(), zstd)(data)


def write_compressed(path):
    write_csv(path)
    path.write_bytes(compress(path.name, path.read_bytes()))


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
        *((f"t.csv.{ending}", write_compressed, "text") for ending in ("gz", "bz2", "xz", "zst", "GZ")),
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
    assert "expected after" in found[2][2] and found[4][2].endswith("(the quote is not closed)")


def test_a_quote_that_is_never_closed_costs_its_own_row_and_renumbers_none(tmp_path):
    lines = ["prompt,note", *(f"a blue duck,{i}" for i in range(40))]
    (tmp_path / "good.csv").write_text("\n".join(lines))
    lines[6] = '"a blue duck,5'
    (tmp_path / "bad.csv").write_text("\n".join(lines))
    good, bad = (read(tmp_path / name)[1] for name in ("good.csv", "bad.csv"))
    assert [(row.index, row.line, row.values) for row in bad if not row.problem] == [
        (row.index, row.line, row.values) for row in good if row.index != 5
    ]
    assert problems(tmp_path / "bad.csv") == [
        (
            6,
            7,
            "a quote opens in this line and the cell does not end as it should by line 41 (the quote is not closed); lines 8 "
            "to 41 are read as rows of their own",
        )
    ]


def test_a_stray_quote_that_a_later_quote_closes_costs_no_more_than_the_lines_with_quotes(tmp_path):
    lines = [
        "prompt,note",
        '"a red house,1',
        "a blue duck,2",
        '"a green, tall lamp",3',
        'a 12" pipe,4',
        '"two',
        'lines",5',
        "last,6",
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    rows = read(tmp_path / "t.csv")[1]
    assert [(row.number, row.values["prompt"]) for row in rows if not row.problem] == [
        (2, "a blue duck"),
        (3, "a green, tall lamp"),
        (4, 'a 12" pipe'),
        (5, "two\nlines"),
        (6, "last"),
    ]
    (tmp_path / "u.csv").write_text('prompt,note\n"multi\nline" x,5\nlast,7\n')
    assert [(number, line) for number, line, _ in problems(tmp_path / "u.csv")] == [(1, 2), (2, 3)]
    assert "quote without its partner" in problems(tmp_path / "u.csv")[1][2]


def test_a_record_is_bounded_and_a_long_cell_is_read(tmp_path):
    many = "\n".join(["prompt", '"a red house', *["a blue duck"] * 3000])
    (tmp_path / "t.csv").write_text(many)
    rows = read(tmp_path / "t.csv")[1]
    assert len(rows) == 3001 and [row.index for row in rows if row.problem] == [0] and "by line 1,001" in rows[0].problem
    (tmp_path / "u.csv").write_text(f"prompt,note\na,{'x' * 300_000}\nb,{'x' * 3_000_000}\nc,y\n")
    rows = read(tmp_path / "u.csv")[1]
    assert [row.values.get("prompt") for row in rows] == ["a", None, "c"]
    assert len(rows[0].values["note"]) == 300_000 and "longer than 1,048,576" in rows[1].problem


def test_cells_and_headers_may_span_lines_and_lines_may_end_as_windows_and_old_macs_write_them(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbf"prompt","a\r\nnote"\r\n"a red\r\nhouse",1\r\n')
    table, rows = read(tmp_path / "t.csv")
    assert rows[0].values == {"prompt": "a red\r\nhouse", "a\r\nnote": "1"} and rows[0].line == 3
    assert check_prompt(rows[0].values["prompt"]) == "a red house" and list(table.columns) == ["prompt", "a\r\nnote"]
    (tmp_path / "u.csv").write_bytes(b"prompt,note\ra red house,x\ra blue duck,y\r")
    assert [row.values["prompt"] for row in read(tmp_path / "u.csv")[1]] == ["a red house", "a blue duck"]


@given(
    st.lists(st.tuples(*[st.text(st.sampled_from('ab,;"\n \t'), max_size=6)] * 2).filter(lambda cells: any(cells)), max_size=8)
)
def test_what_the_csv_module_writes_is_read_back(cells):
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("prompt", "note"), *cells])
    records = list(read_records(io.BytesIO(file.getvalue().encode()), ".csv", prompt_column="prompt"))
    assert [tuple(record.values.values()) for record in records] == cells


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


def test_prompts_stored_as_bytes_are_text_and_bytes_that_are_none_fail_their_row(tmp_path):
    table = {"prompt": [b"a red house", "Käse".encode("latin-1")], "sampler": [b"ddim", None], "raw": [b"\0", b"\1"]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    table, rows = read(tmp_path / "t.parquet")
    assert table.columns == {"prompt": "text", "sampler": "text", "raw": "text"}
    assert rows[0].values == {"prompt": "a red house", "sampler": "ddim", "raw": "AA=="}
    assert rows[1].problem == "the bytes in 'prompt' are not UTF-8 (byte 2)"


@pytest.mark.parametrize(
    "kind", [pyarrow.string_view(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int8(), pyarrow.string())]
)
def test_every_kind_of_text_that_parquet_has_is_text(tmp_path, kind):
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array(["a red house"]).cast(kind)}), tmp_path / "t.parquet")
    table, rows = read(tmp_path / "t.parquet")
    assert table.columns == {"prompt": "text"} and rows[0].values == {"prompt": "a red house"}


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
        ("t.csv", "prompt,steps,num_steps\na,1,2\n", "has the columns 'steps' and 'num_steps', which mean the same"),
        ("t.jsonl", '[\n{"prompt": "a"}\n]', r"is one JSON array, but a line for each row was expected; 'jq -c \.\[\] FILE'"),
        ("t.csv.gz", gzip.compress(b"prompt\n" + bytes(range(48, 90)) * 40)[:-12], r"is damaged or cut short \("),
        ("t.jsonl.xz", lzma.compress(b'{"prompt": "a"}\n' * 50)[:-30], r"is damaged or cut short \("),
        ("t.csv.bz2", bz2.compress(b"prompt\na\n")[:-4], r"is damaged or cut short \("),
        ("t.csv.zst", pyarrow.compress(b"prompt\na\n", codec="zstd", asbytes=True)[:-4], "is damaged, or not compressed as"),
        ("t.csv.gz", "prompt\na\n", r"is damaged, or not compressed as its name says \(Not a gzipped file"),
        ("t.csv.gz", gzip.compress(b"x" * 50)[:12] + b"\xff\x00\x55" * 9, r"is damaged or cut short \(Error -3"),
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
    ("columns", "words"),
    [
        ({"names": ["prompt", "x", "x"], "arrays": [["a"], [1], [2]]}, "has two columns 'x'; rename one"),
        ({"names": ["prompt"], "arrays": [[["a"]]]}, r"has list<.*string> in its column 'prompt', but text was expected"),
        ({"names": ["prompt"], "arrays": [[5]]}, r"has int64 in its column 'prompt'"),
        ({"names": ["prompt"], "arrays": [[{"a": 1}]]}, r"has struct<a: int64> in its column 'prompt'"),
    ],
)
def test_a_parquet_file_whose_prompts_are_no_text_or_whose_columns_hide_each_other_is_refused(tmp_path, columns, words):
    arrays = [pyarrow.array(values) for values in columns["arrays"]]
    pyarrow.parquet.write_table(pyarrow.table(arrays, names=columns["names"]), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=words):
        TableSource.find(str(tmp_path)).scan()


def test_a_key_that_stands_twice_in_a_json_object_makes_its_row_unreadable(tmp_path):
    (tmp_path / "t.jsonl").write_text(
        '{"prompt": "a", "x": 1, "x": 2}\n{"prompt": "b", "in": {"y": 1, "y": 1}}\n{"prompt": "c"}\n'
    )
    found = problems(tmp_path / "t.jsonl")
    assert [words for _, _, words in found] == [
        "the line is not JSON (it has 'x' twice)",
        "the line is not JSON (it has 'y' twice)",
    ]


@pytest.mark.parametrize("folder", ["a::b", "with space", "ünï", "brack[1]et", "q?x", "hash#1", "a%20b", "file:x"])
def test_any_folder_name_is_a_path(tmp_path, folder):
    (tmp_path / folder).mkdir()
    write_csv(tmp_path / folder / "t.csv")
    for location in (tmp_path / folder / "t.csv", tmp_path / folder):
        assert read(location)[0].num_rows == 3


def test_what_a_job_of_ours_wrote_below_a_tables_folder_is_no_table(tmp_path):
    write_csv(tmp_path / "t.csv")
    for out in (tmp_path / "out", tmp_path):
        (out / "00000").mkdir(parents=True)
        (out / "00000" / "metadata.jsonl").write_text('{"prompt": "x"}\n')
        (out / "progress.jsonl").write_text("{}\n")
        write_parquet(out / "part-00000.parquet")
    theirs = ("00000/metadata.jsonl", "part-00000.parquet", "progress.jsonl", "t.csv")
    (tmp_path / "out" / "manifest.json").write_text('{"manifest_version": 1}')
    assert TableSource.find(str(tmp_path)).names == theirs
    (tmp_path / "manifest.json").write_text('{"manifest_version": 1}')
    for location in (tmp_path, f"{tmp_path}/**"):
        assert TableSource.find(str(location)).names == ("t.csv",)
    assert read(tmp_path / "out" / "part-00000.parquet")[0].num_rows == 3


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("missing.csv", "There is no prompt table"),
        ("*.csv", "No file matches"),
        ("", "holds no table"),
        ("nope://x/t.csv", "cannot be opened: Protocol not known: nope; give a path or a URL such as s3://bucket/key"),
        ("ftp://127.0.0.1:9/t.csv", r"^ftp://127\.0\.0\.1:9/t\.csv cannot be opened: Connection refused"),
    ],
)
def test_a_place_without_a_table_is_refused(tmp_path, location, words):
    with pytest.raises(InputError, match=words):
        TableSource.find(location if "://" in location else f"{tmp_path}/{location}")


def test_a_slash_that_is_missing_in_a_url_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"There is no prompt table s3:/bucket/t\.csv \(did you mean s3://bucket/t\.csv\?\)"):
        TableSource.find("s3:/bucket/t.csv")


def test_a_server_that_never_answers_is_named(tmp_path, monkeypatch):
    silent = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(urls, "ANSWER_SECONDS", 0.3)
    location = f"http://127.0.0.1:{silent.getsockname()[1]}/t.csv"
    with (
        silent,
        pytest.raises(InputError, match=rf"^{location} cannot be opened: its server gave no answer within 0\.3 s; check"),
    ):
        TableSource.find(location)


def test_another_prompt_column(tmp_path):
    (tmp_path / "t.csv").write_text("caption\na lamp\n")
    table, rows = read(tmp_path / "t.csv", prompt_column="caption")
    assert rows[0].values == {"caption": "a lamp"} and table.columns == {"caption": "text"}
