"""bertfast info --model: whether a model takes the fast path, on which device and dtype, and why."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from bertfast import ops
from bertfast.ops.activations import fused_config_name
from bertfast.runtime.devices import DTYPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Row = tuple[str, str, str]  # name, value, reason or remark


def model_rows(folder: str) -> Iterator[Row]:
    """The table of `bertfast info --model folder`. Raises ValueError where the folder cannot be read."""
    from bertfast.quantization.schemes import scheme_of

    model = _load(folder)
    config = model.config
    head_size = config.hidden_size // config.num_attention_heads
    shape = f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}, {config.num_attention_heads} heads of {head_size}"
    yield type(model).__name__, shape, f"{count_parameters(model) / 1e6:,.1f} million parameters"
    scheme = scheme_of(model)
    yield from _path_rows(model, scheme)
    if torch.cuda.is_available() and scheme is None:
        yield _cuda_graph_row(model)
    yield from activation_rows(config.hidden_act)
    yield "reference path", "training mode, autocast, torch.compile", "also hooks or adapters inside the model"
    yield "padding", "an encoder's hidden states are zero there", "keep_padding=True computes them as transformers does"


def count_parameters(model: "PreTrainedModel") -> int:
    """The parameters of a model, those in int8 included; a matrix that two layers share counts once."""
    from bertfast.quantization.int8_layers import Int8Linear, Int8Table

    count = sum(p.numel() for p in model.parameters())
    for module in model.modules():
        if isinstance(module, Int8Table) and not (isinstance(module, Int8Linear) and module.tied):
            weight = module.kernel_weight
            count += weight.features * weight.inputs
    return int(count)


def _load(folder: str) -> "PreTrainedModel":
    import transformers

    import bertfast
    from bertfast.text.sentence_transformers_folder import read_settings

    settings = read_settings(folder)
    transformers.logging.set_verbosity_error()  # missing head weights do not matter here
    config = bertfast.BertConfig.from_pretrained(settings.model_dir)
    name = next((n for n in config.architectures or [] if n in bertfast.__all__), "BertModel")
    return getattr(bertfast, name).from_pretrained(settings.model_dir).eval()


def _path_rows(model: "PreTrainedModel", scheme: str | None) -> Iterator[Row]:
    """A row for each device and dtype; one for a quantized model."""
    from bertfast.engine.eligibility import why_reference

    reason = why_reference(model, {})
    if scheme is not None:
        yield f"cpu {scheme}", "fast path" if reason is None else "reference path", reason or "in eval mode"
        return
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        for name, dtype in DTYPES.items():
            if reason is not None:
                yield f"{device} {name}", "reference path", reason
            elif ops.has_kernels(torch.device(device), dtype):
                yield f"{device} {name}", "fast path", "in eval mode"
            else:
                yield f"{device} {name}", "fast path, reference ops", "this build has no kernels for this dtype"


def _cuda_graph_row(model: "PreTrainedModel") -> Row:
    from bertfast.engine.cuda_graph_eligibility import why_eager_trial

    reason = why_eager_trial(model.to("cuda", torch.float16))
    return "CUDA graphs", "not used" if reason else "captured and replayed", reason or "one per bucket of shapes"


def activation_rows(hidden_act: str) -> Iterator[Row]:
    """A row where the kernels do not fuse the activation of that name in a config."""
    if fused_config_name(hidden_act) is None:
        yield "activation", hidden_act, "not fused into the kernels: computed by transformers' function"
