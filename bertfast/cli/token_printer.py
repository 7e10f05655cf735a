"""Tokens printed as they are generated."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

from bertfast.cli.standard_streams import standard_output


class TokenPrinter:
    """A transformers streamer that writes to standard output: token ids as they come, text word by word (the last word may still grow).

    tokenizer: decodes the tokens; None prints ids.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase | None") -> None:
        self.tokenizer = tokenizer
        self.prompt_is_next = True  # generate() passes the prompt first
        self.tokens: list[int] = []
        self.printed = 0  # characters

    def put(self, value: "torch.Tensor") -> None:
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
        assert self.tokenizer is not None, "ids are printed without it"
        text: str = self.tokenizer.decode(self.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def write(self, piece: str) -> None:
        if piece:
            out = standard_output()
            out.write(piece)
            out.flush()
            self.printed += len(piece)

    def end(self) -> None:
        if self.tokenizer is not None:
            self.write(self.text()[self.printed :])
        out = standard_output()
        out.write("\n")
        out.flush()
