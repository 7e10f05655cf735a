"""A folder's own code is never run, and no question is asked on standard input."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from bertfast.cli import app
from bertfast.tasks import Embedder
from bertfast.text.sentence_transformers_folder import read_settings

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
Path({marker!r}).touch()
from transformers import BertTokenizer, BertConfig, BertModel
class Own(BertTokenizer): pass
class OwnConfig(BertConfig): model_type = "own"
def generate(model, *args, **kwargs): return args
"""


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def tokenizer_class(folder: Path) -> None:
    edit(folder / "config.json", model_type=None)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]}, tokenizer_class="Own")


def tokenizer_class_of_a_bert(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]}, tokenizer_class="Own")


def config_class(folder: Path) -> None:
    edit(folder / "config.json", model_type=None, auto_map={"AutoConfig": "own.OwnConfig"})


def config_class_of_a_bert(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoConfig": "own.OwnConfig", "AutoModel": "own.BertModel"})


def no_model_type(folder: Path) -> None:
    edit(folder / "config.json", model_type=None)


def generation_code(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "own.py", folder / "custom_generate" / "generate.py")


def a_kernel_of_a_hub(folder: Path) -> None:
    edit(folder / "config.json", attn_implementation="somebody/attention")


WAYS = [
    (tokenizer_class, "model_type"),
    (tokenizer_class_of_a_bert, r"tokenizer_config\.json: auto_map"),
    (config_class, "model_type"),
    (config_class_of_a_bert, r"config\.json: auto_map"),
    (no_model_type, r"config\.json has no model_type"),
    (generation_code, "code of the folder's own"),
    (a_kernel_of_a_hub, "attn_implementation is 'somebody/attention'"),
]


@pytest.fixture
def folder(small_dir: Path, tmp_path: Path) -> Path:
    made = Path(shutil.copytree(small_dir, tmp_path / "m"))
    (made / "own.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    return made


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch):
    def answer(prompt: str = "") -> str:
        pytest.fail(f"a question on standard input: {prompt}")

    monkeypatch.setattr("builtins.input", answer)


@pytest.mark.parametrize(("prepare", "message"), WAYS)
def test_embedder_refuses_by_name(folder, tmp_path, prepare: Callable[[Path], None], message):
    prepare(folder)
    with pytest.raises(ValueError, match=message):
        Embedder.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("command", ["generate", "convert", "info"])
@pytest.mark.parametrize(("prepare", "message"), WAYS)
def test_commands_refuse_by_name(folder, tmp_path, capfd, prepare, message, command):
    prepare(folder)
    arguments = {"generate": ["a text", "-m", folder], "convert": [folder, tmp_path / "new"], "info": ["-m", folder]}[command]
    with pytest.raises(SystemExit) as stop:
        app.main([command, *map(str, arguments)])
    assert stop.value.code == 1
    assert "bertfast: error: " in capfd.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_yes_on_standard_input_runs_nothing(folder, tmp_path):
    """The texts of `embed -` may well hold a line that says yes."""
    tokenizer_class(folder)
    command = [sys.executable, "-m", "bertfast", "embed", "-", "-m", str(folder), "-o", str(tmp_path / "x.npy")]
    done = subprocess.run(command, input=b"hello\nyes\nthe end\n", capture_output=True, timeout=120, check=False)
    assert done.returncode == 1
    assert b"model_type" in done.stderr
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "x.npy").exists()


def test_a_class_of_ours_runs_no_generation_code(folder, tmp_path):
    """transformers runs custom_generate/ only where it is trusted; ours leaves nothing to its default."""
    import bertfast

    generation_code(folder)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        load = transformers.PreTrainedModel.from_pretrained.__func__
        patch.setattr(
            transformers.PreTrainedModel,
            "from_pretrained",
            classmethod(lambda cls, *args, **kwargs: seen.append(kwargs.get("trust_remote_code")) or load(cls, *args, **kwargs)),
        )
        bertfast.BertLMHeadModel.from_pretrained(folder)
    assert seen == [False]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["own.Transformer", "my_package.models.Transformer", "custom_st.Transformer"])
def test_modules_of_another_package_are_refused(folder, kind):
    modules = [{"path": "", "type": kind}, {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    with pytest.raises(ValueError, match=f"names the modules {kind}, Pooling; expected"):
        read_settings(folder)
