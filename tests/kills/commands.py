"""The commands that write, on a model that loads at once: what each writes undisturbed, and how its user goes on after a fault."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from tests import builders

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
TEXTS = 1000  # four chunks: a chunk ends after 256 texts where --max-tokens is small
WORDS = [f"word{i}" for i in range(60)]
Contents = dict[str, bytes]  # of files, by path
Run = Callable[[list[str], Path], "Ended"]  # of a command's arguments, undisturbed; its standard output goes to the path


@dataclass(frozen=True)
class Ended:
    """How a command ended. code: its exit code, or minus the signal that ended it."""

    code: int
    err: str


@dataclass(frozen=True)
class Command:
    """A command that writes to `output`, a name in its folder; "-" for standard output."""

    name: str
    arguments: list[str]
    output: str

    def line(self, folder: Path, *flags: str) -> list[str]:
        return [argument.format(folder=folder) for argument in self.arguments] + list(flags)

    @property
    def resumes(self) -> bool:
        return self.output.startswith("out.")


class Setting:
    """The inputs, in a folder: texts, other texts, and models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = random.Random(0)
        for name, count in (("texts.txt", TEXTS), ("others.txt", 300)):
            lines = [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(count)]
            (folder / name).write_text("\n".join(lines) + "\n")
        save_model(folder / "encoder", transformers.BertModel)
        save_model(folder / "decoder", transformers.BertLMHeadModel, is_decoder=True)

    def embed(self, output: str, texts: str = "texts.txt") -> list[str]:
        options = ["-m", str(self.folder / "encoder"), "--max-tokens", "64", "--threads", "1"]
        return ["embed", str(self.folder / texts), *options, "-o", output]

    def commands(self) -> list[Command]:
        return [
            Command("embed to .npy", self.embed("{folder}/out.npy"), "out.npy"),
            Command("embed to .jsonl", self.embed("{folder}/out.jsonl"), "out.jsonl"),
            Command("embed to standard output", self.embed("-"), "-"),
            Command("generate", ["generate", "word1 word2", "-m", str(self.folder / "decoder"), "-n", "24", "--threads", "1"], "-"),
            Command("convert", ["convert", str(GOLDEN / "extra_tf_sharded"), "{folder}/new"], "new"),
            Command("convert to int8", ["convert", str(self.folder / "encoder"), "{folder}/new", "--quantization", "int8"], "new"),
        ]


def save_model(folder: Path, cls: type, **changes: object) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS]) + "\n")
    config = builders.bert_config(builders.SMALL, vocab_size=len(special) + len(WORDS), **changes)
    torch.manual_seed(0)
    model = cls(config).eval()
    builders.normal_(model, 0.3, 0)
    model.save_pretrained(folder)
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)


def contents(folder: Path) -> Contents:
    """Every file below a folder; a folder without one is named with a slash."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            found[str(path.relative_to(folder))] = path.read_bytes()
        elif path.is_dir() and not any(path.iterdir()):
            found[f"{path.relative_to(folder)}/"] = b""
    return found


def undisturbed(command: Command, folder: Path, run: Run) -> Contents:
    """What the command leaves in a new folder, its standard output under "-". RuntimeError where it fails."""
    folder.mkdir()
    printed = folder.parent / "printed"
    ended = run(command.line(folder), printed)
    if ended.code != 0:
        raise RuntimeError(f"{command.name} failed undisturbed: {ended.err}")
    left = contents(folder)
    if command.output == "-":
        left["-"] = printed.read_bytes()
    shutil.rmtree(folder)
    return left


def go_on(command: Command, folder: Path, run: Run, rng: random.Random) -> Contents | str:
    """What the folder holds once the user has gone on, one of the ways that the messages offer; or what went wrong."""
    printed = folder.parent / "printed"
    flags = rng.choice(([], ["--resume"], ["--restart"])) if command.resumes else []
    ended = run(command.line(folder, *flags), printed)
    if ended.code == 1 and "add --resume to continue it, or --restart to start over" in ended.err:
        ended = run(command.line(folder, rng.choice(("--resume", "--restart"))), printed)
    elif ended.code == 1 and "leave --resume out to replace it" in ended.err:  # an older result is still in its place
        ended = run(command.line(folder), printed)
    if ended.code != 0:
        return f"{' '.join(command.line(folder, *flags)[:1] + flags)} afterwards: exit code {ended.code}: {ended.err}"
    left = contents(folder)
    if command.output == "-":
        left["-"] = printed.read_bytes()
    return left


def is_whole(folder: Path) -> bool:
    """Whether a conversion has finished: its claim is gone."""
    return (folder / "new" / "config.json").exists() and not (folder / "new" / ".converting").exists()
