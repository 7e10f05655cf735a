"""The random jobs of a soak. Each takes the models and a random generator, and raises AssertionError where a result is wrong."""

import copy
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bertfast
from bertfast.cli import app
from bertfast.tasks import Embedder
from tests import builders, compare
from tests.kills.commands import WORDS, save_model

CHILD_PATIENCE = 120  # seconds
DTYPES = {torch.float32: compare.FLOAT32, torch.bfloat16: 0.1}  # and how far from transformers in the same dtype


class Models:
    """A pool of pairs (transformers' model, ours) that are replaced again and again, and a folder with a tokenizer."""

    def __init__(self, rng: random.Random, folder: Path) -> None:
        import transformers

        self.folder = folder
        save_model(folder / "encoder", transformers.BertModel)
        self.embedder = Embedder.from_pretrained(folder / "encoder")
        self.pairs = [new_pair(rng, head) for head in builders.HEADS]
        self.decoders = [new_decoder(rng) for _ in range(2)]

    def pair(self, rng: random.Random) -> tuple[Any, Any]:
        return rng.choice(self.pairs)


def new_pair(rng: random.Random, head: str) -> tuple[Any, Any]:
    settings = {**rng.choice((builders.SMALL, builders.TINY)), "num_hidden_layers": rng.randint(1, 3)}
    return warmed(builders.pair(head, rng.randrange(1000), dtype=rng.choice(list(DTYPES)), **settings), rng)


def new_decoder(rng: random.Random) -> tuple[Any, Any]:
    settings = {**builders.SMALL, "num_hidden_layers": rng.randint(1, 2)}
    return warmed(builders.pair("BertLMHeadModel", std=0.3, is_decoder=True, **settings), rng)


def warmed(pair: tuple[Any, Any], rng: random.Random) -> tuple[Any, Any]:
    """Called once, so that what bertfast remembers of a model is there from its first sample on."""
    for model in pair:
        bertfast.optimize(model)(**arguments_of(model, rng))
    bertfast.restore(pair[0])
    return pair


def arguments_of(model: Any, rng: random.Random) -> dict[str, Any]:
    head = type(model).__name__
    longest = model.config.max_position_embeddings
    return builders.batch(head, model, rng.randint(1, 6), rng.randint(1, rng.choice((8, longest))), rng.choice(builders.MASKS[:-1]))


def call(models: Models, rng: random.Random) -> None:
    """One call, now and then against transformers, else twice."""
    stock, fast = models.pair(rng)
    arguments = arguments_of(fast, rng)
    actual = fast(**arguments)
    expected = stock(**arguments) if (against_stock := rng.random() < 0.3) else fast(**arguments)
    real = arguments.get("attention_mask")
    compare.assert_agree(actual, expected, real, DTYPES[fast.dtype] if against_stock else 0.0)


def call_in_threads(models: Models, rng: random.Random) -> None:
    """Several threads call one model while another moves its weights."""
    _, fast = models.pair(rng)
    cases = [(arguments, fast(**arguments)) for arguments in (arguments_of(fast, rng) for _ in range(3))]
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        own = random.Random(seed)
        try:
            with torch.no_grad():
                for _ in range(5):
                    arguments, expected = own.choice(cases)
                    compare.assert_agree(fast(**arguments), expected, limit=0.0)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(rng.randrange(1000),)) for _ in range(rng.randint(2, 4))]
    for thread in threads:
        thread.start()
    for _ in range(3):
        move_weights(fast, rng)
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]


def move_weights(model: Any, rng: random.Random) -> None:
    if rng.random() < 0.5:
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    else:
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
        model.tie_weights()


def convert_weights(models: Models, rng: random.Random) -> None:
    """To another dtype and back; from bfloat16 that loses nothing."""
    _, fast = models.pair(rng)
    if fast.dtype is torch.bfloat16:
        arguments = arguments_of(fast, rng)
        expected = fast(**arguments)
        fast.to(torch.float32)
        fast(**arguments)
        fast.to(torch.bfloat16)
        compare.assert_agree(fast(**arguments), expected, limit=0.0)


def call_in_a_child(models: Models, rng: random.Random) -> None:
    _, fast = models.pair(rng)
    arguments = arguments_of(fast, rng)
    expected = fast(**arguments)

    def work() -> None:
        compare.assert_agree(fast(**arguments), expected, limit=0.0)

    in_child(work)


def in_child(work: Callable[[], None]) -> None:
    if (pid := os.fork()) == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    end = time.monotonic() + CHILD_PATIENCE
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGABRT)  # faulthandler says where it hangs
            os.waitpid(pid, 0)
            raise AssertionError(f"a forked child did not end in {CHILD_PATIENCE} s")
        time.sleep(0.002)
    assert ended[1] == 0, f"a forked child ended with status {ended[1]}"


def generate(models: Models, rng: random.Random) -> None:
    stock, fast = rng.choice(models.decoders)
    B, S = rng.randint(1, 4), rng.randint(1, 8)
    prompt = torch.randint(1, fast.config.vocab_size, (B, S))
    settings = {
        "num_beams": rng.choice((1, 1, 3)), "max_new_tokens": rng.randint(1, 12), "do_sample": False, "pad_token_id": 0,
        "eos_token_id": rng.choice((None, 7)),
    }  # fmt: skip
    actual = fast.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    other = stock if rng.random() < 0.3 else fast
    expected = other.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    assert torch.equal(actual, expected), f"generate of {B} x {S} with {settings}: {actual.tolist()}, expected {expected.tolist()}"


def cached_steps(models: Models, rng: random.Random) -> None:
    """A sequence read in pieces has the logits of the whole one."""
    _, fast = rng.choice(models.decoders)
    ids = torch.randint(1, fast.config.vocab_size, (rng.randint(1, 3), rng.randint(2, 12)))
    whole, cache, read = fast(ids).logits, None, 0
    pieces: list[Tensor] = []
    while read < ids.shape[1]:
        count = rng.randint(1, 3)
        output = fast(ids[:, read : read + count], past_key_values=cache, use_cache=True)
        cache = output["cache"] if "cache" in output else output["past_key_values"]
        pieces.append(output.logits)
        read += count
    assert compare.distance(torch.cat(pieces, dim=1), whole) <= compare.FLOAT32


def some_texts(rng: random.Random, count: int) -> list[str]:
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 20))) for _ in range(count)]


def embed(models: Models, rng: random.Random) -> None:
    """A text has the same vector in any batch."""
    texts = some_texts(rng, rng.randint(1, 60))
    vectors = models.embedder.encode(texts)
    for i in rng.sample(range(len(texts)), min(3, len(texts))):
        assert np.array_equal(models.embedder.encode([texts[i]])[0], vectors[i]), f"text {i} of {len(texts)} alone"


def embed_command(models: Models, rng: random.Random) -> None:
    """bertfast embed, in this process; its rows are the embedder's."""
    texts = some_texts(rng, rng.randint(1, 300))
    suffix = rng.choice(("npy", "jsonl"))
    with tempfile.TemporaryDirectory(dir=models.folder) as name:
        folder = Path(name)
        (folder / "texts").write_text("\n".join(texts) + "\n")
        line = ["embed", str(folder / "texts"), "-m", str(models.folder / "encoder"), "-o", str(folder / f"out.{suffix}"), "-q"]
        said = StringIO()
        try:
            with redirect_stdout(said), redirect_stderr(said):
                app.main(line)
        except SystemExit as end:
            assert end.code == 0, said.getvalue()  # noqa: PT017
        if suffix == "npy":
            rows = np.load(folder / "out.npy")
        else:
            rows = np.array([json.loads(each)["embedding"] for each in (folder / "out.jsonl").read_text().splitlines()], dtype=np.float32)
        assert np.array_equal(rows, models.embedder.encode(texts))


def optimize_and_restore(models: Models, rng: random.Random) -> None:
    stock, _ = models.pair(rng)
    arguments = arguments_of(stock, rng)
    before = stock(**arguments)
    bertfast.optimize(stock)
    compare.assert_agree(stock(**arguments), before, arguments.get("attention_mask"), DTYPES[stock.dtype])
    bertfast.restore(stock)
    compare.assert_agree(stock(**arguments), before, limit=0.0)


def quantize(models: Models, rng: random.Random) -> None:
    model = bertfast.optimize(copy.deepcopy(models.decoders[0][0]), quantization="int8")
    ids = torch.randint(1, model.config.vocab_size, (rng.randint(1, 4), rng.randint(1, 16)))
    logits = model(ids).logits
    assert torch.equal(model(ids).logits, logits)
    assert torch.equal(model(ids[:1]).logits, logits[:1])


def replace_a_model(models: Models, rng: random.Random) -> None:
    i = rng.randrange(len(models.pairs) + len(models.decoders) + 1)
    if i < len(models.pairs):
        models.pairs[i] = new_pair(rng, builders.HEADS[i])
    elif i < len(models.pairs) + len(models.decoders):
        models.decoders[i - len(models.pairs)] = new_decoder(rng)
    else:
        models.embedder = Embedder.from_pretrained(models.folder / "encoder")


def change_threads(models: Models, rng: random.Random) -> None:
    bertfast.set_num_threads(rng.randint(1, 4))


Job = Callable[[Models, random.Random], None]
JOBS: dict[Job, int] = {  # and how often
    call: 20, call_in_threads: 3, call_in_a_child: 2, convert_weights: 3, generate: 4, cached_steps: 4, embed: 4, embed_command: 1,
    optimize_and_restore: 4, quantize: 1, replace_a_model: 3, change_threads: 3,
}  # fmt: skip
