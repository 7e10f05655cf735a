"""The texts of bertfast embed: lines, a field of JSON Lines, a column of CSV; encodings."""

import io
import json

import numpy as np
import pytest

from bertfast.cli import app, errors
from bertfast.cli.input_texts import InputTexts
from bertfast.tasks import Embedder

TEXTS = ["A man is eating.", 'quotes " and, commas', "zwei\nZeilen", "", "Straße"]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(errors, "debug", False)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        app.main([str(a) for a in arguments])
    return stop.value.code


def as_jsonl(field: str = "text") -> bytes:
    return "".join(json.dumps({"id": i, field: text}, ensure_ascii=False) + "\n" for i, text in enumerate(TEXTS)).encode()


def as_csv(field: str = "text", delimiter: str = ",") -> bytes:
    rows = [f"id{delimiter}{field}"] + [f'{i}{delimiter}"{text.replace(chr(34), 2 * chr(34))}"' for i, text in enumerate(TEXTS)]
    return "\r\n".join(rows).encode()


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("in.jsonl", as_jsonl(), []),
        ("in.ndjson", as_jsonl("body"), ["--text-field", "body"]),
        ("in.csv", as_csv(), []),
        ("in.csv", b"\xef\xbb\xbf" + as_csv("text")[3:].replace(b"text", b"id,text", 1), []),
        ("in.CSV", as_csv("body"), ["--text-field", "body"]),
        ("in.tsv", as_csv(delimiter="\t"), []),
        ("in.dat", as_csv(), ["--input-format", "csv"]),
        ("in.csv", as_csv().decode().encode("utf-16"), ["--encoding", "utf-16"]),
        ("in.csv", as_csv().decode().encode("latin-1"), ["--encoding", "latin-1"]),
    ],
)
def test_the_text_field_is_embedded_not_the_source_of_its_line(small_dir, tmp_path, name, content, options):
    (tmp_path / name).write_bytes(content)
    assert run("embed", tmp_path / name, "-m", small_dir, "-o", tmp_path / "out.npy", *options) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), Embedder.from_pretrained(small_dir).encode(TEXTS))


def test_lines_of_any_suffix_can_be_forced(small_dir, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(as_jsonl())
    assert run("embed", tmp_path / "in.jsonl", "-m", small_dir, "-o", tmp_path / "out.npy", "--input-format", "text") == 0
    lines = as_jsonl().decode().splitlines()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), Embedder.from_pretrained(small_dir).encode(lines))


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("in.jsonl", as_jsonl("body"), [], "line 1: no field 'text' (found: id, body); name one with --text-field. --input-format text"),
        ("in.csv", as_csv("body"), [], "no field 'text' (found: id, body); name one with --text-field. --input-format text"),
        ("in.csv", b"text,text\na,b\n", [], "no field 'text' (found: text, text)"),
        ("in.csv", b"id,text\n1,a\n2\n", [], "line 3: no field 'text'"),
        ("in.csv", b'text\n"open\n', [], "is not CSV"),
        ("in.csv", b"text\n", [], "is empty"),
        ("in.jsonl", b'{"text": "a"}\n\n', [], "line 2 is not JSON"),
        ("in.jsonl", b'"a"\n', [], "line 1 is a JSON str, expected an object"),
        ("in.jsonl", b'{"text": 3}\n', [], "line 1: 'text' is a int, expected a text"),
        ("in.jsonl", b'{"text": "\\ud800"}\n', [], "half of a surrogate pair"),
        ("in.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", [], "line 1 is nested too deeply"),
        ("in.json", b'["a"]', [], ".json is not read; expected text, jsonl, csv, tsv. --input-format text reads its lines"),
        ("in.parquet", b"PAR1", [], ".parquet is not read"),
        ("in.txt", b"a\n", ["--text-field", "body"], "--text-field: got 'body', but lines of text have no fields"),
        ("in.txt", b"a\n", ["--input-format", "xml"], "--input-format: got 'xml', expected text, jsonl, csv, tsv"),
        ("in.txt", b"a\n", ["--encoding", "klingon"], "--encoding: got 'klingon'"),
        ("in.txt", b"a\n", ["--encoding", "base64"], "--encoding: got 'base64'"),
        ("in.txt", b"a\n", ["--errors", "surrogateescape"], "--errors: got 'surrogateescape', expected strict, replace, ignore"),
        ("in.txt", b"a\n\xe4\n", ["--encoding", "ascii"], "it is not ascii"),
        ("in.txt", b"a\n\xe4\n", [], "line 2 is not UTF-8 (invalid continuation byte at byte 0); --encoding names another, --errors"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_the_option(small_dir, tmp_path, capfd, name, content, options, message):
    (tmp_path / name).write_bytes(content)
    assert run("embed", tmp_path / name, "-m", small_dir, "-o", tmp_path / "out.npy", *options) == 1
    err = capfd.readouterr().err.splitlines()
    assert message in err[-1], err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(("how", "expected"), [("replace", ["a", "\ufffd\ufffd", "b"]), ("ignore", ["a", "", "b"])])
def test_decoding_errors_can_be_passed_over(how, expected):
    reader = InputTexts.of("in.txt", None, None, "utf-8", how)
    assert list(reader.read(io.BytesIO(b"a\n\xff\xfe\nb"), "in.txt")) == expected
