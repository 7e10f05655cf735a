"""Whole models on the CUDA backend, against transformers: layout, encoder and heads on the Triton kernels.

Truth is transformers in float64; the yardstick is transformers in the dtype under test.
"""

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig
from transformers.models.bert import modeling_bert as theirs

import bertfast
from accuracy import assert_as_accurate
from bertfast import ops

pytestmark = pytest.mark.usefixtures("cuda_path")
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
BATCHES = {
    "unpadded": [[1, 1, 1, 1, 1]] * 2,
    "right-padded": [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]],
    "left-padded": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]],
    "one-token": [[1]],
}
HEADS = [
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
]


def pair(head: str, dtype: torch.dtype, device: torch.device, **config) -> tuple[nn.Module, nn.Module]:
    """Our model in `dtype`, transformers' with the same weights: realistic scales, nothing left at 0 or 1."""
    sizes = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 136}
    torch.manual_seed(0)
    reference = getattr(theirs, head)(BertConfig(**{**sizes, "max_position_embeddings": 40, **config})).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.1 + ("LayerNorm.weight" in name))
            else:
                parameter.mul_(3)
    reference = reference.to(device, dtype)
    return bertfast.optimize(copy.deepcopy(reference)), reference


def inputs(mask: list[list[int]], device: torch.device) -> dict[str, torch.Tensor]:
    attention_mask = torch.tensor(mask, device=device)
    ids = torch.randint(97, attention_mask.shape, device=device)
    return {"input_ids": ids, "attention_mask": attention_mask, "token_type_ids": torch.randint(2, ids.shape, device=device)}


def check(ours: nn.Module, reference: nn.Module, given: dict[str, torch.Tensor]) -> None:
    real = given["attention_mask"].bool() if "attention_mask" in given else None
    with torch.no_grad():
        actual = ours(**given)
        yardstick = reference(**given)
        wide = {name: t.double() if t.is_floating_point() else t for name, t in given.items()}
        truth = copy.deepcopy(reference).double()(**wide)
    assert list(actual) == list(yardstick)
    for name in actual:
        if not isinstance(actual[name], torch.Tensor):
            continue
        values = [out[name] for out in (actual, yardstick, truth)]
        if real is not None and values[0].shape[:2] == real.shape:
            values = [value[real] for value in values]
        assert_as_accurate(values[0], yardstick=values[1], truth=values[2])


@every_dtype
@pytest.mark.parametrize("shape", BATCHES)
def test_hidden_states(shape, dtype, device):
    ours, reference = pair("BertModel", dtype, device)
    if shape == "left-padded":  # transformers pools column 0, here padding, which would make the layout KEPT
        ours.pooler = reference.pooler = None
    assert ops.has_kernels(device, dtype)
    check(ours, reference, inputs(BATCHES[shape], device))


@every_dtype
@pytest.mark.parametrize("head", HEADS)
def test_every_head(head, dtype, device):
    ours, reference = pair(head, dtype, device)
    check(ours, reference, inputs(BATCHES["right-padded"], device))


@every_dtype
@pytest.mark.parametrize("shape", ["unpadded", "right-padded"])
def test_causal(shape, dtype, device):
    ours, reference = pair("BertLMHeadModel", dtype, device, is_decoder=True, use_cache=False)
    check(ours, reference, inputs(BATCHES[shape], device))


def test_cross_attention(device):
    ours, reference = pair("BertModel", torch.float32, device, is_decoder=True, add_cross_attention=True, use_cache=False)
    given = inputs(BATCHES["right-padded"], device)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], device=device)
    check(ours, reference, {**given, "encoder_hidden_states": torch.randn(3, 4, 64, device=device), "encoder_attention_mask": mask})


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "silu"])
def test_other_activations(activation, device):
    ours, reference = pair("BertModel", torch.float16, device, hidden_act=activation)
    check(ours, reference, inputs(BATCHES["right-padded"], device))


def test_inputs_embeds(device):
    ours, reference = pair("BertModel", torch.float16, device)
    mask = torch.tensor(BATCHES["right-padded"], device=device)
    embeds = torch.randn(*mask.shape, 64, device=device, dtype=torch.float16)
    check(ours, reference, {"inputs_embeds": embeds, "attention_mask": mask})


def test_no_op_runs_on_the_reference(monkeypatch, device):
    """Without this, the tests above would pass without a kernel."""
    from bertfast.ops import reference as reference_ops

    for name in ("embed_layer_norm", "linear", "linear_concat", "add_layer_norm", "varlen_attention", "pack", "unpack"):
        monkeypatch.setattr(reference_ops, name, None)
    ours, _ = pair("BertForQuestionAnswering", torch.float16, device)
    with torch.no_grad():
        ours(**inputs(BATCHES["right-padded"], device))


def test_an_id_out_of_range_is_named(device):
    ours, _ = pair("BertModel", torch.float16, device)
    given = inputs(BATCHES["right-padded"], device)
    given["input_ids"][0, 2] = 97

    def run() -> None:
        ours(**given)
        if device.type == "cuda":
            torch.cuda.synchronize()
            ours(**given)  # a GPU reports late: the next call raises

    with torch.no_grad(), pytest.raises(ValueError, match=r"input_ids: got 97, expected 0 <= input_ids < 97"):
        run()


@every_dtype
@pytest.mark.parametrize("graph", [True, False], ids=["cuda_graph", "eager"])
def test_batch_invariant(graph, dtype, monkeypatch, device):
    """A sequence has the same bits alone and in a batch of other lengths, and they are right."""
    from bertfast.engine import cpu_plans, cuda_capture, cuda_graph_cache, cuda_graphs

    if not graph:
        monkeypatch.setenv("BERTFAST_CUDA_GRAPHS", "0")
    elif device.type == "cpu":  # the stand-in for CUDA's capture: see test_triton_cuda_graphs.py
        monkeypatch.setattr(cpu_plans, "run", cuda_graphs.run)
        monkeypatch.setattr(cuda_graph_cache, "cache", cuda_graph_cache.GraphCache(8))
        monkeypatch.setattr(cuda_capture, "capture", capture_stand_in)
    _, reference = pair("BertModel", dtype, device, hidden_act="gelu_new")
    ours = bertfast.optimize(copy.deepcopy(reference), batch_invariant=True)
    given = inputs([[1] * 5 + [0] * 4, [1] * 9, [1] + [0] * 8], device)
    together = ours(**given)
    for row, length in enumerate((5, 9, 1)):
        alone = ours(**{name: t[row : row + 1, :length] for name, t in given.items()})
        assert torch.equal(alone.last_hidden_state[0], together.last_hidden_state[row, :length])
        assert torch.equal(alone.pooler_output[0], together.pooler_output[row])
    check(ours, reference, given)


def capture_stand_in(run, device):
    """In place of CUDA's capture: a replay runs the forward again, into the same outputs."""
    logits = run()

    def replay() -> None:
        for name, each in run().items():
            logits[name].value.copy_(each.value)

    return replay, logits


def test_batch_invariant_computes_no_product_by_cublas(monkeypatch, device):
    from bertfast.ops import cuda

    ours, _ = pair("BertForQuestionAnswering", torch.float16, device)
    ours.batch_invariant = True
    monkeypatch.setattr(torch.nn.functional, "linear", None)
    monkeypatch.setattr(torch, "addmm", None)
    ours(**inputs(BATCHES["right-padded"], device))
    assert not cuda.is_batch_invariant()
