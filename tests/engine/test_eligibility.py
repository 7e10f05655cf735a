"""What takes the reference path and what must not: a test for each line of `why_reference`.

A call that takes transformers' forward logs why, once: these tests check that reason, and that the numbers are transformers'.
"""

import copy
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from transformers.models.bert import modeling_bert as theirs

import bertfast
import builders
from bertfast.engine import eligibility
from bertfast.engine import forward as engine_forward
from compare import assert_agree

pytestmark = pytest.mark.usefixtures("one_thread")

B, S = 3, 11


@pytest.fixture(autouse=True)
def nothing_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eligibility, "_said", set())


@pytest.fixture
def both() -> tuple[Any, Any]:
    return builders.pair("BertForTokenClassification")


def call(model: Any) -> dict[str, Any]:
    torch.manual_seed(5)
    return builders.batch("BertForTokenClassification", model, B, S, "right")


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "bertfast" and "transformers' own forward" in r.getMessage()]


def leaves(fast: Any, expected_of: Any, why: str, caplog: pytest.LogCaptureFixture) -> None:
    """A call takes transformers' forward for that reason, says so once, and gives what transformers gives, padding included."""
    arguments = call(fast)
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger="bertfast"):
        actual, again, expected = fast(**arguments), fast(**arguments), expected_of(**arguments)
    assert [why in reason for reason in reasons(caplog)] == [True], reasons(caplog)
    assert_agree(actual, expected, limit=0.0)
    assert_agree(again, expected, limit=0.0)


def stays(fast: Any, expected_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    arguments = call(fast)
    with caplog.at_level(logging.WARNING, logger="bertfast"), pytest.MonkeyPatch.context() as patched:
        computed: list[object] = []
        compute = engine_forward.compute
        patched.setattr(engine_forward, "compute", lambda *given: computed.append(None) or compute(*given))
        actual, expected = fast(**arguments), expected_of(**arguments)
    assert reasons(caplog) == []
    assert len(computed) == 1, "not the fast path"
    assert_agree(actual, expected)


def test_inference_stays(both: Any, caplog: pytest.LogCaptureFixture) -> None:
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context():
            stays(both[1], both[0], caplog)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Adapter(nn.Linear):
    pass


def patched(module: nn.Module) -> None:
    old = module.forward
    module.forward = lambda *args, **kwargs: old(*args, **kwargs)  # type: ignore[method-assign]


def deepest(model: Any) -> Any:
    return model.bert.encoder.layer[1].attention.self.query


def replaced(model: Any, kind: type) -> None:
    new = kind(36, 36)
    new.load_state_dict(deepest(model).state_dict())
    model.bert.encoder.layer[1].attention.self.query = new


def identity(model: Any) -> None:
    model.bert.encoder.layer[1].output.LayerNorm = nn.Identity()


def rms(model: Any) -> None:
    model.bert.encoder.layer[1].output.LayerNorm = nn.RMSNorm(36)


def renormalised(model: Any) -> None:
    model.bert.embeddings.word_embeddings.max_norm = 1.0


def transposed(model: Any) -> None:
    query = deepest(model)
    query.weight = nn.Parameter(query.weight.detach().t().contiguous().t())


def double(parameter: Tensor) -> Any:
    class Subclass(torch.Tensor):
        pass

    return nn.Parameter(parameter.detach().as_subclass(Subclass))


INSIDE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "forward hook": (lambda m: deepest(m).register_forward_hook(lambda module, args, out: 2 * out), "a hook on"),
    "forward pre-hook": (lambda m: deepest(m).register_forward_pre_hook(lambda module, args: (2 * args[0],)), "a hook on"),
    "hook with keywords": (
        lambda m: m.bert.encoder.register_forward_pre_hook(lambda module, args, kwargs: None, with_kwargs=True),
        "a hook on",
    ),
    "hook on the inner model": (lambda m: m.bert.register_forward_hook(lambda *_: None), "a hook on"),
    "backward hook": (lambda m: deepest(m).register_full_backward_hook(lambda *_: None), "a hook on"),
    "patched forward": (lambda m: patched(deepest(m)), "was patched"),
    "patched inner model": (lambda m: patched(m.bert), "was patched"),
    "parametrization": (lambda m: nn.utils.parametrize.register_parametrization(deepest(m), "weight", Doubled()), "Parametrized"),
    "weight norm": (lambda m: parametrizations.weight_norm(deepest(m)), "Parametrized"),
    "pruning": (lambda m: prune.l1_unstructured(deepest(m), "weight", 0.5), "a hook on"),
    "replaced by a subclass": (lambda m: replaced(m, Adapter), "Adapter"),
    "layer norm left out": (identity, "Identity"),
    "another norm": (rms, "RMSNorm"),
    "embedding with max_norm": (renormalised, "renormalises"),
    "weights by columns": (transposed, "row by row"),
    "weights of a subclass": (lambda m: setattr(deepest(m), "weight", double(deepest(m).weight)), "Subclass"),
    "dropout left in train mode": (lambda m: m.bert.encoder.layer[2].output.dropout.train(), "training mode"),
    "attention by another name": (lambda m: setattr(m.config, "_attn_implementation_internal", "mine"), "attention function of its own"),
}


@pytest.mark.parametrize("warm", [False, True], ids=["before the first call", "between calls"])
@pytest.mark.parametrize("change", INSIDE)
def test_what_is_put_inside_is_run(change: str, warm: bool, both: Any, caplog: pytest.LogCaptureFixture) -> None:
    expected_of, fast = both
    if change == "attention by another name":
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register("mine", sdpa_attention_forward)
        AttentionMaskInterface.register("mine", sdpa_mask)
    if warm:
        stays(fast, expected_of, caplog)
    make, why = INSIDE[change]
    for model in both:
        torch.manual_seed(2)
        make(model)
    leaves(fast, expected_of, why, caplog)


def test_taken_out_again_it_is_fast_again(both: Any, caplog: pytest.LogCaptureFixture) -> None:
    expected_of, fast = both
    handle = deepest(fast).register_forward_hook(lambda *_: None)
    leaves(fast, expected_of, "a hook on", caplog)
    handle.remove()
    caplog.clear()
    stays(fast, expected_of, caplog)
    patched(deepest(fast))
    leaves(fast, expected_of, "was patched", caplog)
    del deepest(fast).forward
    caplog.clear()
    stays(fast, expected_of, caplog)


def test_a_hook_on_the_model_itself_sees_the_fast_call(both: Any, caplog: pytest.LogCaptureFixture) -> None:
    expected_of, fast = both
    seen = []
    fast.register_forward_hook(lambda module, args, out: seen.append(out))
    stays(fast, expected_of, caplog)
    assert len(seen) == 1


def test_a_class_patched_for_everybody(both: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    expected_of, fast = both
    stays(fast, expected_of, caplog)
    old = theirs.BertIntermediate.forward
    monkeypatch.setattr(theirs.BertIntermediate, "forward", lambda self, hidden_states: 0.5 * old(self, hidden_states))
    leaves(fast, expected_of, "was patched", caplog)
    monkeypatch.undo()


def test_global_hooks(both: Any, caplog: pytest.LogCaptureFixture) -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        leaves(both[1], both[0], "global module hook", caplog)
    finally:
        handle.remove()


def test_hooks_that_transformers_left_behind_do_not_count(both: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its own capturing of hidden states stays installed after one call that needed it."""
    expected_of, fast = both
    fast.train()
    fast(**call(fast), output_hidden_states=True)
    fast.eval()
    assert any(m._forward_hooks for m in fast.modules())
    caplog.clear()
    stays(fast, expected_of, caplog)


def test_training_mode(both: Any, caplog: pytest.LogCaptureFixture) -> None:
    for model in both:
        model.train()
    leaves(both[1], both[0], "training mode", caplog)
    for model in both:
        model.eval()
    caplog.clear()
    stays(both[1], both[0], caplog)


def test_dropout_in_train_mode_drops(caplog: pytest.LogCaptureFixture) -> None:
    expected_of, fast = builders.pair("BertForTokenClassification")
    for model in (expected_of, fast):
        model.bert.encoder.layer[0].output.dropout.p = 0.5
        model.bert.encoder.layer[0].output.dropout.train()
    arguments = call(fast)
    with torch.no_grad():
        torch.manual_seed(3)
        actual = fast(**arguments)
        torch.manual_seed(3)
        assert_agree(actual, expected_of(**arguments), limit=0.0)
        assert not torch.equal(actual.logits, fast(**arguments).logits)


def test_autocast(both: Any, caplog: pytest.LogCaptureFixture) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaves(both[1], both[0], "autocast", caplog)


def test_an_argument_for_the_attention_functions(both: Any, caplog: pytest.LogCaptureFixture) -> None:
    expected_of, fast = both
    arguments = {**call(fast), "dropout": 0.0}
    with torch.no_grad(), pytest.raises(TypeError):  # transformers passes it on to sdpa, twice
        expected_of(**arguments)
    with torch.no_grad(), pytest.raises(TypeError):
        fast(**arguments)
    assert "dropout" in reasons(caplog)[0]


class TestPrograms:
    """Whatever runs the model as a program of its own."""

    def test_functional_gradients(self, both: Any) -> None:
        gradients = []
        for model in both:
            arguments = call(model)

            def loss(parameters: Any, model: Any = model, arguments: Any = arguments) -> Tensor:
                out: Tensor = torch.func.functional_call(model, parameters, kwargs=arguments).logits.square().mean()
                return out

            gradients.append(torch.func.grad(loss)({name: p.detach() for name, p in model.named_parameters()}))
        for name, expected in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], expected)

    def test_functional_call_reads_the_given_weights(self, both: Any) -> None:
        expected_of, fast = both
        arguments = call(fast)
        with torch.no_grad():
            fast(**arguments)
            given = {name: 1.1 * p for name, p in fast.named_parameters()}
            actual, expected = (torch.func.functional_call(m, given, kwargs=arguments) for m in (fast, expected_of))
            assert_agree(actual, expected, arguments["attention_mask"])
            assert_agree(fast(**arguments), expected_of(**arguments), arguments["attention_mask"])

    def test_vmap_over_an_ensemble(self, both: Any) -> None:
        arguments = call(both[1])
        stacked, _ = torch.func.stack_module_state([both[1], copy.deepcopy(both[1])])
        run = torch.func.vmap(lambda p: torch.func.functional_call(both[1], p, kwargs={"input_ids": arguments["input_ids"]}).logits)
        with torch.no_grad():
            torch.testing.assert_close(run(stacked)[1], both[0](arguments["input_ids"]).logits)

    def test_forward_mode(self) -> None:
        expected_of, fast = builders.pair("BertModel", attn_implementation="eager")
        embeds = torch.randn(B, S, builders.TINY["hidden_size"])
        tangents = []
        for model in (expected_of, fast):
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(embeds, torch.ones_like(embeds))
                out = model(inputs_embeds=dual).last_hidden_state
                tangents.append(torch.autograd.forward_ad.unpack_dual(out).tangent)
        torch.testing.assert_close(tangents[1], tangents[0])

    def test_compile(self, both: Any, caplog: pytest.LogCaptureFixture) -> None:
        expected_of, fast = both
        arguments = call(fast)
        compiled = torch.compile(fast, backend="eager", fullgraph=False)
        with torch.no_grad():
            assert_agree(compiled(**arguments), expected_of(**arguments), limit=1e-6)
        torch._dynamo.reset()
        stays(fast, expected_of, caplog)

    def test_export(self, both: Any) -> None:
        expected_of, fast = both
        arguments = call(fast)
        with torch.no_grad():
            exported = torch.export.export(fast, (), kwargs=arguments, strict=False).module()(**arguments)
            torch.testing.assert_close(exported.logits, expected_of(**arguments).logits)

    def test_trace(self) -> None:
        expected_of, fast = builders.pair("BertForTokenClassification", return_dict=False)
        ids = call(fast)["input_ids"]
        with torch.no_grad():
            traced = torch.jit.trace(fast, (ids,), check_trace=False)
            torch.testing.assert_close(traced(ids)[0], expected_of(ids)[0])

    def test_fake_tensors(self, both: Any) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        fast = copy.deepcopy(both[1])
        with FakeTensorMode(allow_non_fake_inputs=True):
            out = fast(torch.zeros(B, S, dtype=torch.long))
        assert out.logits.shape == (B, S, 2)

    def test_a_counter_of_operations_sees_them(self, both: Any) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        counts = []
        for model in both:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model(**call(model))
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0

    def test_meta_device(self) -> None:
        with torch.device("meta"):
            fast = bertfast.BertModel(builders.bert_config()).eval()
        out = fast(torch.zeros(B, S, dtype=torch.long, device="meta"))
        assert out.last_hidden_state.shape == (B, S, builders.TINY["hidden_size"])


class TestWeights:
    """No copy of a weight is kept: whatever changes one is seen by the next call."""

    @pytest.fixture(params=["no_grad", "grad"])
    def grad(self, request: pytest.FixtureRequest) -> Iterator[None]:
        with torch.set_grad_enabled(request.param == "grad"):
            yield

    def changed(self, both: Any, caplog: pytest.LogCaptureFixture, change: Callable[[Any], None]) -> None:
        expected_of, fast = both
        stays(fast, expected_of, caplog)
        before = fast(**call(fast)).logits
        for model in both:
            change(model)
        stays(fast, expected_of, caplog)
        assert not torch.equal(before, fast(**call(fast)).logits)

    def test_edits_of_data(self, both: Any, grad: None, caplog: pytest.LogCaptureFixture) -> None:
        self.changed(both, caplog, lambda m: deepest(m).weight.data.mul_(1.5))

    def test_data_replaced(self, both: Any, grad: None, caplog: pytest.LogCaptureFixture) -> None:
        self.changed(both, caplog, lambda m: setattr(deepest(m).weight, "data", deepest(m).weight.data.flip(0)))

    def test_data_seen_otherwise(self, both: Any, caplog: pytest.LogCaptureFixture) -> None:
        """Same address, other numbers: the transposed view of a weight."""
        expected_of, fast = both
        stays(fast, expected_of, caplog)
        for model in both:
            deepest(model).weight.data = deepest(model).weight.data.t()
        arguments = call(fast)
        with torch.no_grad():
            for _ in range(2):  # recorded or not, then replayed or not
                assert_agree(fast(**arguments), expected_of(**arguments), arguments["attention_mask"])

    @pytest.mark.parametrize(
        "change",
        [
            lambda w: w[:, :-1],
            lambda w: w.reshape(-1)[: w.numel() - w.shape[1]].view(-1, w.shape[1]),
            lambda w: w.view(torch.float16),
            lambda w: w.reshape(-1)[: -w.shape[0]].view(w.shape[0], -1),
        ],
        ids=["fewer columns", "fewer rows", "float16", "fewer columns and contiguous"],
    )
    def test_what_transformers_refuses_in_the_same_place(self, both: Any, change: Any, caplog: pytest.LogCaptureFixture) -> None:
        """A plan would read past the end of the weight, or its bytes as other numbers."""
        expected_of, fast = both
        stays(fast, expected_of, caplog)
        for model in both:
            weight = deepest(model).weight
            address, weight.data = weight.data_ptr(), change(weight.data)
            assert weight.data_ptr() == address
        for _ in range(2):
            for model in (expected_of, fast):
                with pytest.raises((RuntimeError, ValueError)), torch.no_grad():
                    model(**call(model))

    def test_fewer_rows_in_the_same_place(self, both: Any, caplog: pytest.LogCaptureFixture) -> None:
        expected_of, fast = both
        stays(fast, expected_of, caplog)
        for model in both:
            model.classifier.weight.data = model.classifier.weight.data[:1]
            model.classifier.bias.data = model.classifier.bias.data[:1]
        stays(fast, expected_of, caplog)

    def test_parameters_replaced(self, both: Any, grad: None, caplog: pytest.LogCaptureFixture) -> None:
        self.changed(both, caplog, lambda m: setattr(deepest(m), "weight", nn.Parameter(deepest(m).weight.detach() * 2)))

    def test_numpy_writes(self, both: Any, grad: None, caplog: pytest.LogCaptureFixture) -> None:
        def write(model: Any) -> None:
            deepest(model).weight.detach().numpy()[:] *= 3

        self.changed(both, caplog, write)

    def test_loading(self, both: Any, grad: None, caplog: pytest.LogCaptureFixture) -> None:
        other, _ = builders.pair("BertForTokenClassification", seed=9)
        self.changed(both, caplog, lambda m: m.load_state_dict(other.state_dict()))

    def test_loading_by_assignment(self, both: Any, grad: None, caplog: pytest.LogCaptureFixture) -> None:
        other, _ = builders.pair("BertForTokenClassification", seed=9)
        self.changed(both, caplog, lambda m: m.load_state_dict(other.state_dict(), assign=True))

    @pytest.mark.parametrize("kind", ["fused", "foreach", "plain"])
    def test_optimizers(self, kind: str, both: Any, caplog: pytest.LogCaptureFixture) -> None:
        def step(model: Any) -> None:
            torch.manual_seed(7)
            chosen = {"fused": kind == "fused", "foreach": kind == "foreach"}
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, **chosen)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()

        with torch.no_grad():
            self.changed(both, caplog, step)

    def test_fewer_layers(self, both: Any, caplog: pytest.LogCaptureFixture) -> None:
        def cut(model: Any) -> None:
            model.bert.encoder.layer = model.bert.encoder.layer[:2]

        self.changed(both, caplog, cut)

    def test_another_dtype(self, both: Any) -> None:
        expected_of, fast = both
        arguments = call(fast)
        with torch.no_grad():
            fast(**arguments)
            for model in both:
                model.double()
            assert_agree(fast(**arguments), expected_of(**arguments), arguments["attention_mask"], limit=1e-12)
            for model in both:
                model.float()
            assert_agree(fast(**arguments), expected_of(**arguments), arguments["attention_mask"])


def test_defaults_of_torch_do_not_matter(both: Any, caplog: pytest.LogCaptureFixture) -> None:
    expected_of, fast = both
    arguments = call(fast)
    with torch.no_grad():
        expected = [expected_of(**arguments), expected_of(input_ids=arguments["input_ids"])]
        for _ in range(2):  # recorded, replayed
            torch.set_default_dtype(torch.float64)
            torch.set_default_device("meta")
            try:
                actual = [fast(**arguments), fast(input_ids=arguments["input_ids"])]
            finally:
                torch.set_default_dtype(torch.float32)
                torch.set_default_device(None)
            assert_agree(actual[0], expected[0], arguments["attention_mask"])
            assert_agree(actual[1], expected[1])


def test_a_model_can_go(both: Any) -> None:
    """Neither the guard nor its plans keep a model alive."""
    fast = copy.deepcopy(both[1])
    fast(**call(fast))
    gone = weakref.ref(fast)
    del fast
    import gc

    gc.collect()
    assert gone() is None


def test_lora(both: Any, caplog: pytest.LogCaptureFixture) -> None:
    import peft

    results = []
    for model in both:
        torch.manual_seed(11)
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query", "value"], init_lora_weights=False))
        arguments = call(model)
        with torch.no_grad(), caplog.at_level(logging.WARNING, logger="bertfast"):
            adapted.eval()
            results.append(adapted(**arguments).logits)
            adapted.train()
        adapted(**arguments).logits.square().sum().backward()
        results.append(torch.cat([p.grad.flatten() for p in adapted.parameters() if p.grad is not None]))
        results.append(adapted.merge_and_unload().eval()(**arguments).logits[arguments["attention_mask"].ne(0)])
    assert any("peft" in reason for reason in reasons(caplog))
    for expected, actual in zip(results[:3], results[3:], strict=True):
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)
