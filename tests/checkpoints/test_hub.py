"""Names of models on the Hub are taken from the local cache; nothing is downloaded where the user forbids it."""

import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import transformers

from bertfast.checkpoints import hub
from bertfast.tasks import Embedder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(small_dir, tmp_path, monkeypatch) -> Path:
    """A cache with the model `somebody/small`, as the Hub's client leaves it: files are links to blobs."""
    root = tmp_path / "hub"
    model = root / "models--somebody--small"
    snapshot = model / "snapshots" / COMMIT
    shutil.copytree(small_dir, model / "blobs")
    snapshot.mkdir(parents=True)
    for blob in (model / "blobs").iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setenv("HF_HUB_CACHE", str(root))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return root


def test_a_cached_name_is_its_folder(cache, small_dir):
    folder = hub.local_folder("somebody/small")
    assert folder == cache / "models--somebody--small" / "snapshots" / COMMIT
    vectors = Embedder.from_pretrained("somebody/small", device="cpu").encode(["a text"])
    np.testing.assert_array_equal(vectors, Embedder.from_pretrained(small_dir, device="cpu").encode(["a text"]))


def test_a_folder_comes_before_a_name(cache, small_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_dir, tmp_path / "somebody" / "small")
    assert hub.local_folder("somebody/small") == Path("somebody/small")


@pytest.mark.parametrize("name", ["somebody/other", "nowhere", "bert-base-uncased"])
def test_a_name_that_is_not_cached_is_refused_offline(cache, name):
    with pytest.raises(ValueError, match=f"model folder '{name}' does not exist, and the Hub's cache has no model of that name"):
        Embedder.from_pretrained(name)


@pytest.mark.parametrize("name", ["../x", "/a/b", "a/b/c", "a b", "", "./a", "a/..", Path("somebody/small")])
def test_what_is_no_name_is_never_looked_up(cache, name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: pytest.fail("looked up"))
    assert hub.local_folder(name) == Path(name)


def test_online_safetensors_are_enough(tmp_path, monkeypatch):
    asked = []

    def download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(transformers.utils.hub, "is_offline_mode", lambda: False)
    hub.local_folder("somebody/other")
    assert [any("bin" in pattern for pattern in patterns) for patterns in asked] == [False, True]
    (tmp_path / "model.safetensors").touch()
    asked.clear()
    hub.local_folder("somebody/other")
    assert len(asked) == 1


@pytest.mark.parametrize("command", ["embed", "convert", "info"])
def test_commands_take_names(cache, tmp_path, command):
    (tmp_path / "in.txt").write_text("a text\n")
    arguments = {
        "embed": [tmp_path / "in.txt", "-m", "somebody/small", "-o", tmp_path / "out.npy"],
        "convert": ["somebody/small", tmp_path / "new"],
        "info": ["-m", "somebody/small"],
    }[command]
    done = subprocess.run([sys.executable, "-m", "bertfast", command, *map(str, arguments)], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
