"""bertfast generate: the continuation of a prompt, printed token by token."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from bertfast.cli.standard_streams import read_standard_input, standard_output
from bertfast.cli.token_printer import TokenPrinter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from bertfast import BertLMHeadModel


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
    """Continue `prompt` ("-" reads standard input). Prints the continuation to standard output and statistics to standard error.

    ids: prompt and continuation are token ids, separated by spaces or commas, used without special tokens. Otherwise they are text: the
    prompt starts with the tokenizer's [CLS], the continuation ends at its [SEP] (or at the model config's end tokens).
    temperature 0 is greedy decoding. Raises ValueError for an option, a folder or a prompt that cannot be used.
    """
    console = Console(stderr=True, quiet=quiet)
    if max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens: got {max_new_tokens}, expected at least 1")
    if temperature < 0:
        raise ValueError(f"--temperature: got {temperature}, expected 0 (greedy decoding) or more")
    text = read_standard_input() if prompt == "-" else prompt
    standard_output()  # before the model is loaded
    with console.status(f"loading {model}"):
        import torch

        from bertfast.checkpoints.hub import local_folder
        from bertfast.quantization.schemes import scheme_of
        from bertfast.runtime.devices import read_device, read_dtype

        folder = local_folder(model)
        decoder = load_decoder(folder, read_dtype(dtype), console, quantization)
        decoder = decoder.to(read_device(decoder.device if device is None and scheme_of(decoder) is not None else device))
        tokenizer = None if ids else load_prompt_tokenizer(folder)
    tokens = read_ids(text, decoder.config.vocab_size) if tokenizer is None else prompt_ids(tokenizer, text)
    if not tokens:
        raise ValueError("the prompt is empty: expected at least one token")

    printer = TokenPrinter(tokenizer)
    options: dict[str, object] = {"max_new_tokens": max_new_tokens, "repetition_penalty": repetition_penalty, "num_beams": num_beams}
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
    streamed = num_beams == 1  # the best beam is known at the end only
    out = decoder.generate(prompts, attention_mask=torch.ones_like(prompts), streamer=printer if streamed else None, **options)
    new = out[0, len(tokens) :]
    if not streamed:
        printer.show(new.tolist())
        printer.end()
    seconds = time.perf_counter() - start
    console.print(f"{len(new):,} tokens in {seconds:.2f} s, {len(new) / seconds:,.1f} tokens/s", highlight=False)


def load_decoder(folder: Path, dtype: "torch.dtype", console: Console, quantization: str | None = None) -> "BertLMHeadModel":
    """The BertLMHeadModel in `folder`, in eval mode. Raises ValueError where it lacks weights."""
    import transformers

    from bertfast import BertConfig, BertLMHeadModel
    from bertfast.checkpoints.own_code import read_bert_config
    from bertfast.graph.family import FAMILIES

    if not (folder / "config.json").is_file():
        raise ValueError(f"--model: {folder} is not a model folder: no config.json")
    read_bert_config(folder, FAMILIES)
    config = BertConfig.from_pretrained(folder)
    if not config.is_decoder:
        console.print(f"{folder}: config.is_decoder is not set; the model was probably not trained to generate text", highlight=False)
        config.is_decoder = True
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its table of missing weights is the ValueError below
    try:
        model, report = BertLMHeadModel.from_pretrained(
            folder, config=config, dtype=dtype, quantization=quantization, output_loading_info=True, trust_remote_code=False
        )
    finally:
        transformers.logging.set_verbosity(verbosity)
    if missing := sorted(report["missing_keys"]):
        more = f" and {len(missing) - 1} more weights" if missing[1:] else ""
        raise ValueError(f"--model: {folder} is not a language model: it lacks {missing[0]}{more}")
    return model.eval()


def load_prompt_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in `folder`. Raises ValueError, pointing to --ids, where there is none."""
    from bertfast.text.tokenizer_files import load_tokenizer_of

    try:
        return load_tokenizer_of(folder)
    except ValueError as error:
        raise ValueError(f"--model: {error}; pass token ids with --ids") from error


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """[CLS] and the text, without [SEP]."""
    first = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
    return [*first, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def read_ids(text: str, vocabulary: int) -> list[int]:
    """The token ids in `text`, each below `vocabulary`. Raises ValueError."""
    pieces = re.split(r"[\s,]+", text.strip()) if text.strip() else []
    for piece in pieces:
        if not piece.isascii() or not piece.isdigit() or int(piece) >= vocabulary:
            raise ValueError(f"--ids: got {piece!r}, expected token ids from 0 to {vocabulary - 1}, separated by spaces or commas")
    return [int(piece) for piece in pieces]
