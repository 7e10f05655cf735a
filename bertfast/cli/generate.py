"""bertfast generate: a prompt goes in, its continuation is printed token by token as it comes."""

import re
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console


def run(
    prompt: str,
    *,
    model: str,
    ids: bool,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    num_beams: int,
    seed: int | None,
    dtype: str,
    device: str | None,
    quantization: str | None = None,
    quiet: bool,
) -> None:
    """Continue `prompt` ("-" reads standard input); prints to standard output, what it says about itself to standard error.

    ids: prompt and continuation are token ids, parted by spaces or commas, used as they are. Otherwise they are text: the prompt starts
    with the tokenizer's [CLS], and the continuation ends at its [SEP] (or at the end tokens that the model's config names).
    temperature 0 takes the best token each time. ValueError where an option, the folder or the prompt makes no sense.
    """
    console = Console(stderr=True, quiet=quiet)
    if max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens: got {max_new_tokens}, expected 1 or more")
    if temperature < 0:
        raise ValueError(f"--temperature: got {temperature}, expected 0 (the best token each time) or more")
    text = sys.stdin.read() if prompt == "-" else prompt
    with console.status(f"loading {model}"):
        import torch

        from bertfast.quantization.schemes import scheme_of
        from bertfast.text.embedder import DTYPES, _device

        if dtype not in DTYPES:
            raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
        decoder = load_decoder(Path(model), DTYPES[dtype], console, quantization)
        decoder = decoder.to(_device(decoder.device if device is None and scheme_of(decoder) is not None else device))
        tokenizer = None if ids else load_tokenizer(Path(model))
    tokens = read_ids(text, decoder.config.vocab_size) if tokenizer is None else encode(tokenizer, text)
    if not tokens:
        raise ValueError("the prompt is empty: expected at least one token to go on from")

    printer = Printer(tokenizer)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "repetition_penalty": repetition_penalty, "num_beams": num_beams}
    if temperature:
        options.update(do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p)
        torch.manual_seed(torch.seed() if seed is None else seed)
    else:
        options.update(do_sample=False)
    end = decoder.generation_config.eos_token_id
    end = tokenizer.sep_token_id if end is None and tokenizer is not None else end
    pad = decoder.config.pad_token_id
    options.update(eos_token_id=end, pad_token_id=0 if pad is None else pad)
    prompts = torch.tensor([tokens], device=decoder.device)
    start = time.perf_counter()
    streamed = num_beams == 1  # beams change their minds until the end
    out = decoder.generate(prompts, attention_mask=torch.ones_like(prompts), streamer=printer if streamed else None, **options)
    new = out[0, len(tokens) :]
    if not streamed:
        printer.show(new.tolist())
        printer.end()
    seconds = time.perf_counter() - start
    console.print(f"{len(new):,} tokens in {seconds:.2f} s, {len(new) / seconds:,.1f} a second", highlight=False)


class Printer:
    """A transformers streamer: prints ids as they come, and text word by word (a word may still grow by another piece)."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.prompt_is_next = True
        self.tokens: list[int] = []
        self.printed = 0  # characters

    def put(self, value: Any) -> None:
        if self.prompt_is_next:
            self.prompt_is_next = False
        else:
            self.show(value.flatten().tolist())

    def show(self, new: list[int]) -> None:
        if self.tokenizer is None:
            self.write(" " * bool(self.tokens) + " ".join(map(str, new)))
            self.tokens.extend(new)
            return
        self.tokens.extend(new)
        text = self.text()
        self.write(text[self.printed : text.rfind(" ") + 1])

    def text(self) -> str:
        text: str = self.tokenizer.decode(self.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def write(self, piece: str) -> None:
        if piece:
            sys.stdout.write(piece)
            sys.stdout.flush()
            self.printed += len(piece)

    def end(self) -> None:
        if self.tokenizer is not None:
            self.write(self.text()[self.printed :])
        sys.stdout.write("\n")
        sys.stdout.flush()


def load_decoder(folder: Path, dtype: Any, console: Console, quantization: str | None = None) -> Any:
    import transformers

    from bertfast import BertConfig, BertLMHeadModel

    if not (folder / "config.json").is_file():
        raise ValueError(f"--model: {folder} is no model folder, it has no config.json")
    config = BertConfig.from_pretrained(folder)
    if not config.is_decoder:
        console.print(f"{folder}: the config does not say is_decoder, so it was hardly trained to go on from a text", highlight=False)
        config.is_decoder = True
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # what transformers would print as a table is the ValueError below
    try:
        model, report = BertLMHeadModel.from_pretrained(
            folder, config=config, dtype=dtype, quantization=quantization, output_loading_info=True
        )
    finally:
        transformers.logging.set_verbosity(verbosity)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"--model: {folder} is no language model, it lacks {missing[0]} and {len(missing) - 1} more weights")
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):  # transformers would make one without words
            raise OSError("neither tokenizer.json nor vocab.txt")
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--model: {folder} has no tokenizer that loads; pass token ids with --ids") from error


def encode(tokenizer: Any, text: str) -> list[int]:
    first = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
    return [*first, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def read_ids(text: str, vocabulary: int) -> list[int]:
    pieces = re.split(r"[\s,]+", text.strip()) if text.strip() else []
    for piece in pieces:
        if not piece.isascii() or not piece.isdigit() or int(piece) >= vocabulary:
            raise ValueError(f"--ids: got {piece!r}, expected token ids from 0 to {vocabulary - 1}, parted by spaces or commas")
    return [int(piece) for piece in pieces]
