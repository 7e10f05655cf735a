"""Calls of one model with edits of its module tree, weights, config and modes in between: what transformers' does after the same edits."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

import bertfast
from tests import builders
from tests.compare import distance
from tests.fuzz.agreement import assert_alike, assert_close, in_float64, outcome
from tests.fuzz.case import Case, Target

HEADS = (
    "BertModel",
    "BertForMaskedLM",
    "BertForTokenClassification",
    "BertForSequenceClassification",
    "BertForQuestionAnswering",
    "BertForPreTraining",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)


def layer(model: Any, n: int) -> Any:
    layers = model.base_model.encoder.layer
    return layers[n % len(layers)]


def linears(model: Any) -> list[tuple[nn.Module, str]]:
    return [(m, name) for m in model.modules() for name, child in m.named_children() if isinstance(child, nn.Linear)]


def pick(model: Any, n: int) -> nn.Linear:
    parent, name = linears(model)[n % len(linears(model))]
    found: nn.Linear = getattr(parent, name)
    return found


def parameter(model: Any, n: int) -> nn.Parameter:
    parameters = list(model.parameters())
    return parameters[n % len(parameters)]


def put(model: Any, n: int, made: Callable[[nn.Linear], nn.Module]) -> None:
    parent, name = linears(model)[n % len(linears(model))]
    setattr(parent, name, made(getattr(parent, name)))


class LowRank(nn.Module):
    """An adapter as PEFT writes one."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features, dtype=base.weight.dtype) / 4)
        self.up = nn.Parameter(torch.randn(base.out_features, 2, dtype=base.weight.dtype) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class Scaled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.5 * super().forward(x)


def scaled(base: nn.Linear) -> nn.Linear:
    other = Scaled(base.in_features, base.out_features, bias=base.bias is not None, dtype=base.weight.dtype)
    other.load_state_dict(base.state_dict())
    return other


def double(module: nn.Module, args: Any, output: Any) -> Any:
    return output * 2 if isinstance(output, torch.Tensor) else output


def replace_parameter(model: Any, n: int) -> None:
    dense = pick(model, n)
    dense.weight = nn.Parameter(dense.weight.detach() * 0.5)


def assign(model: Any, n: int) -> None:
    state = {name: t * 0.75 if t.is_floating_point() else t for name, t in model.state_dict().items()}
    model.load_state_dict(state, assign=n % 2 == 1, strict=False)


def remove_hooks(model: Any, n: int) -> None:
    for m in model.modules():
        m._forward_hooks.clear()
        m._forward_pre_hooks.clear()


def swap(model: Any, n: int) -> None:
    layers = model.base_model.encoder.layer
    if len(layers) > 1:
        layers[0], layers[n % len(layers)] = layers[n % len(layers)], layers[0]


def as_views(model: Any, n: int) -> None:
    """Every parameter in one buffer, as DDP and FSDP keep them."""
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    at = 0
    for p in model.parameters():
        p.data = flat[at : at + p.numel()].view(p.shape)
        at += p.numel()


def transposed(model: Any, n: int) -> None:
    dense = pick(model, n)
    dense.weight.data = dense.weight.data.t().contiguous().t()


def dropout(model: Any, n: int) -> None:
    for m in model.modules():
        if isinstance(m, nn.Dropout):
            m.p = (0.0, 0.1, 0.5)[n % 3]


def buffer(model: Any, n: int) -> None:
    embeddings = model.base_model.embeddings
    if n % 2:
        embeddings.position_ids = embeddings.position_ids.flip(1) if n % 3 else embeddings.position_ids + 1
    else:
        embeddings.token_type_ids.fill_(n % 3)


def optimizer_step(model: Any, n: int) -> None:
    if not all(p.dtype == torch.float32 for p in model.parameters()):
        return
    ways: list[Any] = [torch.optim.SGD, torch.optim.AdamW]
    optimizer = ways[n % 2](model.parameters(), lr=0.01, foreach=n % 3 == 0, **({"fused": True} if n % 3 == 1 else {}))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    model.zero_grad()


def untie(model: Any, n: int) -> None:
    decoder = model.get_output_embeddings()
    if decoder is not None:
        decoder.weight = nn.Parameter(decoder.weight.detach() * 1.25)


def input_embeddings(model: Any, n: int) -> None:
    old = model.get_input_embeddings()
    new = nn.Embedding(old.num_embeddings + n % 3, old.embedding_dim, dtype=old.weight.dtype)
    new.weight.data.normal_()
    model.set_input_embeddings(new)


def patch_forward(model: Any, n: int) -> None:
    m = layer(model, n).output
    before = m.forward
    m.forward = lambda *args, **kwargs: before(*args, **kwargs) * 0.5


def prune(model: Any, n: int) -> None:
    nn.utils.prune.l1_unstructured(pick(model, n), "weight", 0.5)


def configure(name: str, *values: Any) -> Callable[[Any, int], None]:
    return lambda model, n: setattr(model.config, name, values[n % len(values)])


def attribute(where: Callable[[Any, int], Any], name: str, *values: Any) -> Callable[[Any, int], None]:
    return lambda model, n: setattr(where(model, n), name, values[n % len(values)])


def attention(model: Any, n: int) -> Any:
    return layer(model, n).attention.self


def mul(model: Any, n: int) -> None:
    parameter(model, n).data.mul_(1.5)


def numpy_write(model: Any, n: int) -> None:
    p = parameter(model, n)
    if p.dtype != torch.bfloat16:
        p.detach().numpy()[...] *= 0.5


EDITS: dict[str, Callable[[Any, int], Any]] = {  # of a model, with any number; the result, if any, takes the model's place
    "weight replaced": replace_parameter,
    "weight in place": mul,
    "weight by NumPy": numpy_write,
    "data replaced": lambda model, n: setattr(parameter(model, n), "data", parameter(model, n).data * 0.5),
    "load_state_dict": assign,
    "weights in one buffer": as_views,
    "weight transposed": transposed,
    "optimizer": optimizer_step,
    "hook": lambda model, n: list(model.modules())[n % len(list(model.modules()))].register_forward_hook(double) and None,
    "pre-hook": lambda model, n: pick(model, n).register_forward_pre_hook(lambda m, args: (args[0] * 0.5,)) and None,
    "hooks removed": remove_hooks,
    "layers swapped": swap,
    "layer removed": lambda model, n: setattr(model.base_model.encoder, "layer", model.base_model.encoder.layer[:-1]),
    "layer shared": lambda model, n: model.base_model.encoder.layer.append(layer(model, n)) and None,
    "layer copied": lambda model, n: model.base_model.encoder.layer.append(copy.deepcopy(layer(model, n))) and None,
    "layers inserted": lambda model, n: model.base_model.encoder.layer.insert(0, copy.deepcopy(layer(model, n))),
    "adapter": lambda model, n: put(model, n, LowRank),
    "subclass": lambda model, n: put(model, n, scaled),
    "sequential": lambda model, n: put(model, n, lambda m: nn.Sequential(m)),
    "identity": lambda model, n: setattr(layer(model, n).output, "LayerNorm", nn.Identity()),
    "bias removed": lambda model, n: setattr(pick(model, n), "bias", None),
    "forward patched": patch_forward,
    "buffer": buffer,
    "eps": attribute(lambda model, n: layer(model, n).output.LayerNorm, "eps", 0.5, 1e-3),
    "scaling": attribute(attention, "scaling", 1.0, 0.1),
    "is_causal": attribute(attention, "is_causal", True, False),
    "activation": lambda model, n: setattr(
        layer(model, n).intermediate, "intermediate_act_fn", (nn.ReLU(), nn.functional.gelu, torch.tanh, nn.GELU("tanh"), nn.Mish())[n % 5]
    ),
    "train": lambda model, n: model.train() and None,
    "eval": lambda model, n: model.eval() and None,
    "one module in train": lambda model, n: layer(model, n).train() and None,
    "dropout": dropout,
    "to": lambda model, n: model.to(DTYPES[n % len(DTYPES)]) and None,
    "part to": lambda model, n: layer(model, n).output.to(DTYPES[n % len(DTYPES)]) and None,
    "requires_grad": lambda model, n: model.requires_grad_(bool(n % 2)) and None,
    "resize": lambda model, n: model.resize_token_embeddings(model.config.vocab_size + n % 5 - 2, mean_resizing=False) and None,
    "tie": lambda model, n: model.tie_weights(),
    "untie": untie,
    "input embeddings": input_embeddings,
    "pooler removed": lambda model, n: setattr(model.base_model, "pooler", None),
    "prune": prune,
    "parametrize": lambda model, n: nn.utils.parametrizations.weight_norm(pick(model, n)) and None,
    "weight_norm": lambda model, n: nn.utils.weight_norm(pick(model, n)) and None,
    "hidden states": configure("output_hidden_states", True, False),
    "return_dict": configure("return_dict", False, True),
    "decoder": configure("is_decoder", True, False),
    "problem": configure("problem_type", "regression", "single_label_classification", None),
    "config replaced": lambda model, n: setattr(model, "config", copy.deepcopy(model.config)),
    "attention implementation": lambda model, n: model.set_attn_implementation(("eager", "sdpa")[n % 2]),
    "deepcopy": lambda model, n: copy.deepcopy(model),
    "pickle": lambda model, n: pickle.loads(pickle.dumps(model)),
    "shared memory": lambda model, n: model.share_memory() and None,
    "attribute": lambda model, n: setattr(model, "own", [model]),
    "restore": lambda model, n: bertfast.restore(model) if type(model).__module__.startswith("bertfast") else None,
    "optimize": lambda model, n: bertfast.optimize(model) if getattr(model, "ours", False) else None,
}
PICKLABLE = ("forward patched", "pre-hook")  # not after these: they hold lambdas


@dataclass(frozen=True)
class Edited(Case):
    head: str
    steps: tuple[tuple[str, int], ...]  # an edit, or a call: a kind of builders.MASKS
    grad: bool
    seed: int

    def check(self) -> str:
        original, fast = builders.pair(self.head, self.seed, **builders.SMALL)
        fast.ours = True
        models, edits, errors = [fast, original], 0, 0
        for number, (name, n) in enumerate(self.steps):
            torch.manual_seed(self.seed + number)
            if name in builders.MASKS:
                errors += not self.check_call(models, name, n)
                continue
            edits += 1
            done = []
            for i, model in enumerate(models):
                torch.manual_seed(self.seed + number)
                done.append(outcome(lambda: EDITS[name](model, n)))  # noqa: B023
                if isinstance(done[i], nn.Module):
                    models[i] = done[i]
            if not assert_alike(done[0], done[1]):
                return "an edit refused by both"
        return "equal" if not errors else "an error in both"

    def check_call(self, models: list[Any], kind: str, n: int) -> bool:
        fast, original = models
        arguments = builders.batch(self.head, fast, 1 + n % 3, 2 + n % 9, kind)
        if n % 4 == 0:
            del arguments["token_type_ids"]
        if n % 5 == 0:
            arguments.update(builders.labels(self.head, fast, arguments))
        if n % 7 == 0:
            arguments["output_hidden_states"] = True
        dtypes = {p.dtype for p in original.parameters()}
        real = None if HEAD_LOGITS[self.head] or n % 11 == 0 else arguments.get("attention_mask")
        fast.keep_padding = True if n % 11 == 0 else None
        if real is not None and bool(real.eq(0).all(dim=1).any()):
            real = None
        for again in range(1 + n % 2):  # the second time from what the first left
            results = []
            for model in (fast, original):
                torch.manual_seed(self.seed + again)
                model.zero_grad()
                with torch.set_grad_enabled(self.grad):
                    results.append(outcome(lambda: model(**arguments)))  # noqa: B023
            if not assert_alike(*results):
                return False
            dtype = next(iter(dtypes)) if len(dtypes) == 1 else torch.bfloat16
            if dtype in (torch.float32, torch.float64) or not (original.training or any(m.training for m in original.modules())):
                assert_close(results[0], results[1], real, dtype, in_float64(original, arguments))
            if self.grad and dtype == torch.float32 and n % 3 == 0:
                self.check_gradient(results, models)
        return True

    def check_gradient(self, results: list[Any], models: list[Any]) -> None:
        outputs = [
            next((t for t in (out.values() if hasattr(out, "values") else out) if isinstance(t, torch.Tensor) and t.requires_grad), None)
            for out in results
        ]
        assert (outputs[0] is None) == (outputs[1] is None), "a gradient passes through one of the two"
        if outputs[0] is None or outputs[0].dim() > 2 or not outputs[0].isfinite().all():
            return
        for out in outputs:
            out.sum().backward()
        for (name, a), (_, b) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None), f"the gradient of {name}: {a.grad is None}, expected {b.grad is None}"
            if a.grad is not None:
                assert distance(a.grad, b.grad) <= 1e-4, f"the gradient of {name} is off by {distance(a.grad, b.grad):.1e}"


HEAD_LOGITS = {
    head: head in ("BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering", "BertForPreTraining") for head in HEADS
}
call = st.tuples(st.sampled_from(builders.MASKS), st.integers(0, 40))
edit = st.tuples(st.sampled_from(sorted(EDITS)), st.integers(0, 40))


@st.composite
def cases(draw: st.DrawFn) -> Edited:
    steps: list[tuple[str, int]] = [draw(call)] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        one = draw(edit)
        if one[0] == "pickle" and any(name in PICKLABLE for name, _ in steps):
            one = ("deepcopy", one[1])
        steps += [one, draw(call)] if draw(st.integers(0, 3)) else [one]
    steps.append(draw(call))
    return Edited(draw(st.sampled_from(HEADS)), tuple(steps), draw(st.booleans()), draw(st.integers(0, 999)))


TARGET = Target(cases(), batch=40, share=3.0)
