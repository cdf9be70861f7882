"""Files of rows: what is no row, no text or no file is named by file, line and field."""

import gzip
import json
import os
import pickle

import pytest

from veto_pl.data import GSM8K, JsonLines, jsonl

from .bad_inputs import Bomb, Case, each, refuse

GOOD = {"prompt": "ab", "completion": "ba"}
LINE = json.dumps(GOOD).encode() + b"\n"
MANY = b"".join(LINE for _ in range(1000))


def row(**fields):
    return json.dumps(GOOD | fields).encode()


NO_ROWS = {
    "a cut object": b'{"prompt": "a',
    "a cut pair": b'{"prompt": ',
    "an array": b"[1, 2]",
    "null": b"null",
    "NaN": b"NaN",
    "words": b"hello there",
    "a comma too many": b'{"prompt": "a",}',
    "two objects": LINE.strip() * 2,
    "a key that is no text": b'{1: "a"}',
    "a key twice": b'{"prompt": "a", "prompt": "b", "completion": ""}',
    "an inner key twice": b'{"prompt": "a", "completion": "", "x": {"y": 1, "y": 2}}',
    "latin 1": b'{"prompt": "\xe9", "completion": ""}',
    "a cut character": b'{"prompt": "\xe6\x97", "completion": ""}',
    "a raw NUL": b'{"prompt": "a\x00b", "completion": ""}',
    "a raw tab": b'{"prompt": "a\tb", "completion": ""}',
    "a wrong escape": b'{"prompt": "\\x41", "completion": ""}',
    "deep brackets": b"[" * 100_000,
    "a deep object": b'{"a":' * 100_000,
    "a number of 10 000 digits": b'{"prompt": "a", "n": ' + b"9" * 10_000 + b"}",
    "a megabyte that is cut": b'{"prompt": "' + b"a" * 1_000_000,
    "binary": bytes(range(256)).replace(b"\n", b""),
    "a pickle": pickle.dumps(GOOD, protocol=0).replace(b"\n", b" "),
}
BAD_FIELDS = {
    "null": None,
    "a number": 5,
    "a list": ["a"],
    "an object": {"text": "a"},
    "a lone surrogate": "\ud800",
    "a surrogate in between": "a\udfffb",
    "a long list": ["a"] * 100_000,
    "a long object": {f"key {i}": i for i in range(20_000)},
}
BLANK = {
    "empty": "",
    "line ends": "\n\r\n\t",
    "no-break spaces": "\xa0\u2003",
    "blank megabyte": " " * 10**6,
}


def file_of(*lines):
    return lambda folder: (folder / "rows.jsonl").write_bytes(b"".join(line.rstrip(b"\n") + b"\n" for line in lines))


def train(name="rows.jsonl", **settings):
    return lambda folder: JsonLines(train=str(folder / name), **settings).load("train")


ROWS = [Case(name, file_of(LINE, line, LINE), train(), ("{folder}/rows.jsonl:2: ",)) for name, line in NO_ROWS.items()]
FIELDS = [
    Case(f"{field}: {name}", file_of(LINE, b"", row(**{field: value})), train(), ("rows.jsonl:3: ", f"`{field}`"))
    for field in ("prompt", "completion")
    for name, value in BAD_FIELDS.items()
]
FIELDS += [
    Case(f"a blank prompt: {name}", file_of(LINE, row(prompt=text)), train(), ("rows.jsonl:2: ", "`prompt`", "blank"))
    for name, text in BLANK.items()
]
FIELDS += [
    Case("no prompt", file_of(b'{"completion": "a"}'), train(), ("jsonl:1: field `prompt`", "it has `completion`")),
    Case("no completion", file_of(b'{"prompt": "a"}'), train(), ("jsonl:1: field `completion`", "it has `prompt`")),
    Case("an empty object", file_of(b"{}"), train(), ("field `prompt`", "no fields")),
    Case("a name in capitals", file_of(b'{"Prompt": "a", "completion": ""}'), train(), ("it has `Prompt`",)),
    Case("a name of a megabyte", file_of(json.dumps({"x" * 10**6: 1}).encode()), train(), ("field `prompt`",)),
    Case("5000 names", file_of(json.dumps({f"k{i}" * 9: 1 for i in range(5000)}).encode()), train(), ("`prompt`",)),
    Case("another field", file_of(LINE), train(prompt="question"), ("field `question`", "`prompt`, `completion`")),
    Case("no answer of GSM8K", file_of(b'{"question": "a"}'), lambda f: gsm8k(f).load("train"), (":1: field",)),
    Case("no rows of GSM8K", file_of(b""), lambda folder: gsm8k(folder).load("validation"), ("0 distinct rows",)),
]  # fmt: skip


def gsm8k(folder):
    return GSM8K(train_path=str(folder / "rows.jsonl"), validation_size=1)


PACKED = gzip.compress(MANY, mtime=0)
FILES = {
    "UTF-16": (MANY.decode().encode("utf-16"), ":1: "),
    "noise": (bytes(range(255, 0, -1)) * 20, ":1: "),
    "zeros": (bytes(5000), ":1: "),
    "an array of rows": (b"[\n" + LINE.strip() + b"\n]", ":1: "),
    "Parquet": (b"PAR1" + bytes(100), ":1: "),
    "old line ends": (LINE.replace(b"\n", b"\r") * 2, ":1: "),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", ":1: "),
    "gzip under a plain name": (PACKED, ":1: "),
    "a good beginning": (LINE * 500 + b"{", ":501: "),
}
ARCHIVES = {
    "no gzip": (b"hello", "a gzipped file"),
    "cut at the end": (PACKED[:-10], "behind line"),
    "cut in the header": (PACKED[:5], "end-of-stream"),
    "a byte flipped": (PACKED[:20] + bytes([PACKED[20] ^ 255]) + PACKED[21:], "decompressing"),
    "another checksum": (PACKED[:-8] + bytes(4) + PACKED[-4:], "CRC"),
    "garbage behind": (PACKED + b"garbage", "behind line 1000"),
    "a bad row inside": (gzip.compress(LINE + b"{"), ":2: "),
    "a plain file": (MANY, "a gzipped file"),
}


def content(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def nothing(folder):
    """Nothing has to be prepared."""


def loop(folder):
    (folder / "loop.jsonl").symlink_to("loop.jsonl")


def at(path):
    return lambda folder: JsonLines(train=path).load("train")


WHOLE = [
    Case(name, content("rows.jsonl", data), train(), (f"rows.jsonl{where}",)) for name, (data, where) in FILES.items()
]
WHOLE += [
    Case(f"gzip: {name}", content("rows.jsonl.gz", data), train("rows.jsonl.gz"), ("rows.jsonl.gz", where))
    for name, (data, where) in ARCHIVES.items()
]
WHOLE += [
    Case("a pickle as rows", lambda f: (f / "rows.jsonl").write_bytes(pickle.dumps(Bomb(f))), train(), (":1: ",)),
    Case("a missing file", nothing, train(), ("{folder}/rows.jsonl", "No such file")),
    Case("a missing folder", nothing, train("no/rows.jsonl"), ("No such file",)),
    Case("a folder", nothing, train(""), ("a folder with none", "`.parquet`")),
    Case("a pipe", lambda folder: os.mkfifo(folder / "rows.jsonl"), train(), ("a pipe or a device",)),
    Case("a pipe of gzip", lambda folder: os.mkfifo(folder / "rows.jsonl.gz"), train("rows.jsonl.gz"), ("a pipe",)),
    Case("a device without an end", nothing, at("/dev/zero"), ("/dev/zero", "a device")),
    Case("a device without a beginning", nothing, at("/dev/null"), ("/dev/null", "a device")),
    Case("a link to itself", loop, train("loop.jsonl"), ("loop.jsonl",)),
    Case("below a file", content("rows", b""), train("rows/rows.jsonl"), ("Not a directory",)),
    Case("an empty path", nothing, at(""), ("a file of rows",)),
    Case("a path with NUL", nothing, at("a\0b"), ("null",)),
    Case("a path of 5000 characters", nothing, at("a" * 5000), ("too long",)),
    Case("the home of nobody", nothing, at("~nobody_of_this_name/rows.jsonl"), ("No such file",)),
    Case("a path with a surrogate", nothing, at("\ud800"), ("surrogates",)),
    Case("an address", nothing, at("https://example.org/rows.jsonl"), ("No such file",)),
]
TABLES = {"parquet": "a Parquet file", "arrow": "an Arrow file", "feather": "an Arrow file", "csv": "a table"}
for _kind, _told in TABLES.items():
    _name = f"rows.{_kind}"
    WHOLE += [
        Case(f"a pipe of {_kind}", lambda f, n=_name: os.mkfifo(f / n), train(_name), ("a pipe", _told)),
        Case(f"noise as {_kind}", content(_name, bytes(range(255, 0, -1))), train(_name), (_name, _told)),
        Case(f"no {_kind}", nothing, train(_name), (_name, "No such file")),
    ]
ROW_CASES = [*ROWS, *FIELDS, *WHOLE]


@each(ROW_CASES)
def test_bad_rows_and_files_are_named(case, tmp_path):
    refuse(case, tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_line_without_an_end_is_not_read_into_memory(suffix, tmp_path, monkeypatch):
    """A bomb of gzip is small, and its one line is not."""
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 1000)
    data, name = LINE + b"x" * 10**6, f"rows.jsonl{suffix}"
    prepare = content(name, gzip.compress(data) if suffix else data)
    refuse(Case("", prepare, train(name), (f"{name}:2: ", "more than 1000 bytes")), tmp_path)


def test_what_is_odd_and_harmless_is_read(tmp_path):
    """Not every odd row is a bad one."""
    odd = {
        "zero width": "\u200b\ufeff",
        "NUL": "a\0b",
        "line separators": "a\u2028b\x85",
        "special tokens": "<pad><eos>",
        "emoji": "\U0001f3f3\ufe0f\u200d\U0001f308",
        "right to left": "\u202eabc",
        "combining": "e\u0301" * 50,
        "a megabyte": "a" * 10**6,
    }
    rows = [row(prompt=text) for text in odd.values()]
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(rows))
    assert [example.prompt for example in train()(tmp_path)] == list(odd.values())


def test_skipping_leaves_out_every_bad_row_and_nothing_else(tmp_path):
    lines = [line for name, line in NO_ROWS.items() if not name.startswith(("a deep", "a megabyte"))]
    mixed = b"\n".join(piece for line in lines for piece in (line, LINE.strip()))
    (tmp_path / "rows.jsonl").write_bytes(mixed)
    with pytest.warns(UserWarning, match=f"skipped {len(lines)} of {2 * len(lines)} rows"):
        assert len(train(on_bad_row="skip")(tmp_path)) == len(lines)
