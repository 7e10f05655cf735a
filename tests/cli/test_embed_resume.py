"""bertfast embed: one writer an output, and --resume continues the same run or says what differs."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from bertfast.cli import app, errors, run_file
from bertfast.cli.output_files import open_output
from bertfast.tasks import Embedder
from bertfast.text import tokenization

LINES = [f"text number {i} of a file" for i in range(12)]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(errors, "debug", False)


@pytest.fixture
def texts(tmp_path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


@pytest.fixture
def model(small_dir, tmp_path) -> Path:
    return Path(shutil.copytree(small_dir, tmp_path / "model"))


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        app.main([str(a) for a in arguments])
    return stop.value.code


def last_line(capfd) -> str:
    return capfd.readouterr().err.splitlines()[-1]


def interrupt(chunks: int, *arguments: object) -> None:
    """A run that Ctrl-C stops after `chunks` chunks of two texts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "TOKENIZE_TEXTS", 2)
        patch.setattr(tokenization, "CHUNK_TEXTS", 2)
        whole, left = Embedder._encode_tokens, iter(range(chunks))

        def encode_tokens(self, tokens, on_rows):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return whole(self, tokens, on_rows)

        patch.setattr(Embedder, "_encode_tokens", encode_tokens)
        assert run(*arguments) == 130


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("out")}


def other_weights(model: Path, texts: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"] + 1e-4
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def other_config(model: Path, texts: Path) -> None:
    content = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(content | {"layer_norm_eps": 1e-5}))


def other_first_text(model: Path, texts: Path) -> None:
    texts.write_text(texts.read_text().replace("number 0", "number X"))


def shorter(model: Path, texts: Path) -> None:
    texts.write_text("\n".join(LINES[:3]) + "\n")


CHANGES: list[tuple[Callable[[Path, Path], None] | list[str], str]] = [
    (other_weights, "the model weights changed"),
    (other_config, "the model configuration changed"),
    (other_first_text, "texts"),
    (shorter, "texts"),
    (["--dtype", "bfloat16"], "dtype was float32, now bfloat16"),
    (["--quantization", "int8"], "quantization was the folder's, now int8"),
    (["--normalize"], "normalization was false, now true"),
    (["--max-seq-length", "9"], "maximum length was the model's, now 9"),
    (["--prompt", "query: "], "prompt was '', now 'query: '"),
]


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_resume_names_what_differs_and_changes_nothing(model, texts, tmp_path, capfd, change, message, finished):
    arguments = ["embed", texts, "-m", model, "-o", tmp_path / "out.npy"]
    if finished:
        assert run(*arguments) == 0
    else:
        interrupt(3, *arguments)
    options = change if isinstance(change, list) else []
    if callable(change):
        change(model, texts)
    before = contents(tmp_path)
    capfd.readouterr()
    assert run(*arguments, *options, "--resume") == 1
    assert message in last_line(capfd)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("suffix", ["npy", "jsonl"])
def test_resume_of_a_finished_result_says_so_and_stops(model, texts, tmp_path, capfd, suffix, monkeypatch):
    arguments = ["embed", texts, "-m", model, "-o", tmp_path / f"out.{suffix}"]
    assert run(*arguments) == 0
    before = contents(tmp_path)
    monkeypatch.setattr(Embedder, "from_pretrained", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    capfd.readouterr()
    assert run(*arguments, "--resume") == 0
    assert f"out.{suffix} is complete: 12 rows of the same run; nothing to do" in last_line(capfd)
    assert contents(tmp_path) == before


def test_a_result_of_unknown_origin_is_not_resumed(model, texts, tmp_path, capfd):
    np.save(tmp_path / "out.npy", np.zeros((12, 32), np.float32))
    before = contents(tmp_path)
    assert run("embed", texts, "-m", model, "-o", tmp_path / "out.npy", "--resume") == 1
    assert "nothing says that its rows are those of an earlier run" in last_line(capfd)
    assert contents(tmp_path) == before


def edit_rows(part: Path) -> None:
    content = bytearray(part.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8] = b"1" * 8
    part.write_bytes(content)


def drop_rows(part: Path) -> None:
    os.truncate(part, part.stat().st_size - 100)


def claim_a_billion(part: Path) -> None:
    if part.name.endswith(".npy.part"):
        with part.open("r+b") as f:
            header = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 32)}
            np.lib.format.write_array_header_1_0(f, header)
    run = run_file.path_of(part)
    run.write_text(run.read_text().replace('"rows": 6', '"rows": 1000000000'))


def lose_the_run_file(part: Path) -> None:
    run_file.path_of(part).unlink()


def damage_the_run_file(part: Path) -> None:
    run_file.path_of(part).write_text('{"format": 1, "rows": "6"}')


@pytest.mark.parametrize("suffix", ["npy", "jsonl"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_rows, "changed since they were written"),
        (drop_rows, "has lost rows"),
        (claim_a_billion, "has lost rows, its run file says 1,000,000,000"),
        (lose_the_run_file, "says what they were computed from"),
        (damage_the_run_file, "is not a run file"),
    ],
)
def test_resume_refuses_damaged_rows(model, texts, tmp_path, capfd, suffix, damage, message):
    arguments = ["embed", texts, "-m", model, "-o", tmp_path / f"out.{suffix}"]
    interrupt(3, *arguments)
    damage(tmp_path / f"out.{suffix}.part")
    before = contents(tmp_path)
    capfd.readouterr()
    assert run(*arguments, "--resume") == 1
    assert message in last_line(capfd)
    assert contents(tmp_path) == before
    assert run(*arguments, "--restart") == 0


@pytest.mark.parametrize("suffix", ["npy", "jsonl"])
def test_rows_that_the_run_file_does_not_count_are_computed_again(model, texts, tmp_path, suffix):
    """A kill between the rows and their run file."""
    out, part = tmp_path / f"out.{suffix}", tmp_path / f"out.{suffix}.part"
    arguments = ["embed", texts, "-m", model, "-o", out]
    assert run(*arguments) == 0
    whole = out.read_bytes()
    out.unlink()
    interrupt(1, *arguments)
    older = run_file.path_of(part).read_bytes()
    interrupt(1, *arguments, "--resume")
    run_file.path_of(part).write_bytes(older)
    assert run(*arguments, "--resume") == 0
    assert out.read_bytes() == whole


def test_a_run_interrupted_while_it_writes_its_first_run_file_leaves_nothing(model, texts, tmp_path, monkeypatch):
    def stop(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    assert run("embed", texts, "-m", model, "-o", tmp_path / "out.npy") == 130
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("stopped", ["before the rename", "between the renames"])
def test_a_run_that_was_stopped_while_it_finished(model, texts, tmp_path, capfd, monkeypatch, stopped, again):
    """again: over a finished result of the same run."""
    out = tmp_path / "out.npy"
    arguments = ["embed", texts, "-m", model, "-o", out]
    if again:
        assert run(*arguments) == 0
    replace, left = os.replace, iter([] if stopped.startswith("before") else [out])

    def stop(source, target):
        if str(target).endswith(".part.run.json"):
            return replace(source, target)
        if next(left, None) is None:
            raise KeyboardInterrupt
        return replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", stop)
        assert run(*arguments) == 130
    assert run(*arguments, "--resume") == 0
    assert {path.name for path in tmp_path.glob("out*")} == {"out.npy", "out.npy.run.json"}
    assert np.load(out).shape == (12, 32)
    assert run(*arguments, "--resume") == 0
    assert "is complete" in last_line(capfd)


@pytest.mark.parametrize("content", [b"", b"x"])
@pytest.mark.parametrize("flags", [[], ["--resume"], ["--restart"]])
def test_a_link_or_a_pipe_at_the_part_file_is_refused(model, texts, tmp_path, capfd, flags, content):
    victim = tmp_path / "victim"
    victim.write_bytes(content)
    (tmp_path / "out.npy.part").symlink_to(victim)
    assert run("embed", texts, "-m", model, "-o", tmp_path / "out.npy", *flags) == 1
    assert "out.npy.part is a symbolic link; remove it" in last_line(capfd)
    assert victim.read_bytes() == content
    (tmp_path / "out.npy.part").unlink()
    os.mkfifo(tmp_path / "out.npy.part")
    assert run("embed", texts, "-m", model, "-o", tmp_path / "out.npy", *flags) == 1
    assert "is not a regular file" in last_line(capfd)


def test_restart_keeps_the_content_of_a_hard_link(model, texts, tmp_path):
    (tmp_path / "victim").write_bytes(b"kept\n")
    os.link(tmp_path / "victim", tmp_path / "out.jsonl.part")
    assert run("embed", texts, "-m", model, "-o", tmp_path / "out.jsonl", "--restart") == 0
    assert (tmp_path / "victim").read_bytes() == b"kept\n"


def test_a_link_at_the_run_files_draft_is_refused(model, texts, tmp_path):
    (tmp_path / "victim").write_bytes(b"kept")
    (tmp_path / "out.npy.part.run.json.new").symlink_to(tmp_path / "victim")
    assert run("embed", texts, "-m", model, "-o", tmp_path / "out.npy") == 1
    assert (tmp_path / "victim").read_bytes() == b"kept"


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--restart"]])
def test_a_second_run_on_one_output_stops(model, texts, tmp_path, capfd, flags):
    part = tmp_path / "out.npy.part"
    with part.open("w+b") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        assert run("embed", texts, "-m", model, "-o", tmp_path / "out.npy", *flags) == 1
        assert "out.npy.part is being written by another run" in last_line(capfd)
        assert part.exists()
    assert run("embed", texts, "-m", model, "-o", tmp_path / "out.npy", *flags) == 0


def test_of_many_runs_at_once_each_result_is_one_run_s(model, tmp_path):
    """Different texts, one output: the runs that exit with 0 wrote whole files, the others say that another run writes."""
    commands = []
    for i in range(4):
        source = tmp_path / f"{i}.txt"
        source.write_text(f"text of run {i}\n" * 600)
        commands.append(
            [sys.executable, "-m", "bertfast", "embed", source, "-m", model, "-o", tmp_path / "out.jsonl", "--max-tokens", "64"]
        )
    runs = [subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE) for command in commands]
    ends = [(process.communicate(timeout=200)[1], process.returncode) for process in runs]
    assert all(code == 0 or b"is being written by another run" in err for err, code in ends), ends
    assert any(code == 0 for _, code in ends)
    written = {json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()}
    assert len(written) == 1
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 600
    assert {path.name for path in tmp_path.glob("out*")} == {"out.jsonl", "out.jsonl.run.json"}


def test_an_unwritable_output_is_noticed_before_the_model_is_loaded(texts, capfd):
    assert run("embed", texts, "-m", "nowhere", "-o", "/proc/out.npy") == 1
    assert "/proc/out.npy" in last_line(capfd)


@pytest.mark.parametrize("suffix", ["npy", "jsonl"])
def test_a_part_file_without_rows_is_written_over(model, texts, tmp_path, suffix):
    part = tmp_path / f"out.{suffix}.part"
    part.write_bytes(b"")
    assert run("embed", texts, "-m", model, "-o", tmp_path / f"out.{suffix}") == 0
    if suffix == "npy":
        np.save(tmp_path / "empty.npy", np.zeros((0, 32), np.float32))
        shutil.move(tmp_path / "empty.npy", part)
        assert run("embed", texts, "-m", model, "-o", tmp_path / "out.npy") == 0


@pytest.mark.parametrize(
    ("arguments", "closed", "message"),
    [
        (["embed", "-", "-m", "{model}", "-o", "{tmp}/out.npy"], "<&-", "empty"),
        (["embed", "{tmp}/texts.txt", "-m", "{model}", "-o", "-"], ">&-", ""),
        (["generate", "-", "-m", "{model}"], "<&-", "prompt is empty"),
    ],
)
def test_closed_standard_streams_are_no_crash(model, texts, tmp_path, arguments, closed, message):
    words = [a.format(model=model, tmp=tmp_path) for a in arguments]
    command = f"{sys.executable} -m bertfast {' '.join(words)} {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr
    assert "AttributeError" not in done.stderr
    if message:
        assert done.returncode == 1


@pytest.mark.parametrize(
    "header", [b"{'descr': '<f4', \0(((", b"(" * 9000, b"{'descr': '<f4', 'shape': (1,", b"\0" * 60, b"[" * 200 + b"]" * 200]
)
def test_a_damaged_header_is_refused_by_name(header, tmp_path):
    """NumPy reads it as Python code, whose parser raises more than ValueError."""
    part = tmp_path / "x.npy.part"
    part.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(24))
    with pytest.raises(ValueError, match=r"x\.npy\.part holds rows of an interrupted run"):
        open_output(str(tmp_path / "x.npy"), resume=False, restart=False)
    out = open_output(str(tmp_path / "x.npy"), resume=True, restart=False)
    run_file.write(part, {}, out.digests)
    with pytest.raises(ValueError, match=r"x\.npy\.part holds no NumPy array"):
        out.begin(3, {})
    out.close()
