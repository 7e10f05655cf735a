"""generate() on the CUDA backend: the cache kernels, and decode steps captured once for each number of sequences. Without a GPU,
CountedCapture of test_triton_cuda_graphs.py stands in for CUDA's capture."""

import copy
import gc
import weakref
from collections import Counter

import pytest
import torch
from test_triton_cuda_graphs import CountedCapture
from transformers import BertConfig
from transformers.models.bert import modeling_bert as theirs

import bertfast
from bertfast import ops
from bertfast.engine import cuda_capture, cuda_graph_cache, cuda_graph_eligibility, eligibility
from bertfast.engine.model_state import state_of
from bertfast.generation import cuda_decoder, loop
from bertfast.generation.sampling import exponential_race
from bertfast.ops import cuda
from bertfast.ops.cuda import rows as cuda_rows

pytestmark = pytest.mark.usefixtures("cuda_path")
V, ENDS = 80, list(range(2, 8))
PROMPTS = [[0, 0, 11, 12, 13], [21, 22, 23, 24, 25], [0, 0, 0, 0, 31]]  # 0: padding


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> CountedCapture:
    stand_in = CountedCapture()
    monkeypatch.delenv("BERTFAST_CUDA_GRAPHS", raising=False)
    monkeypatch.setattr(cuda_capture, "capture", stand_in)
    monkeypatch.setattr(cuda_graph_eligibility, "_reasons", Counter())
    monkeypatch.setattr(cuda_graph_cache, "cache", cuda_graph_cache.GraphCache(cuda_graph_cache.MAX_GRAPHS))
    monkeypatch.setattr(cuda_decoder, "on_gpu", lambda t: True)
    return stand_in


@pytest.fixture(autouse=True)
def fast_path_only(monkeypatch):
    def refuse(kind, message):
        raise AssertionError(f"{kind} took the reference path: {message}")

    monkeypatch.setattr(eligibility, "warn_once", refuse)


@pytest.fixture
def sizes(monkeypatch) -> list[int]:
    """The number of sequences of each decode step."""
    seen: list[int] = []
    call = cuda_decoder.CudaDecoder.__call__

    def noted(self, tokens):
        seen.append(len(tokens))
        return call(self, tokens)

    monkeypatch.setattr(cuda_decoder.CudaDecoder, "__call__", noted)
    return seen


@pytest.fixture
def pair(device):
    config = BertConfig(
        vocab_size=V, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, max_position_embeddings=60,
        is_decoder=True, bos_token_id=1, eos_token_id=ENDS, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(3)
    original = theirs.BertLMHeadModel(config).eval()
    for parameter in original.parameters():
        parameter.data.normal_(0, 0.3)
    original.to(device)
    return original, bertfast.optimize(copy.deepcopy(original))


def prompts(device, rows=PROMPTS):
    ids = torch.tensor(rows, device=device)
    mask = ids.ne(0).long()
    return {"input_ids": ids, "attention_mask": mask}


def generate_both(pair, given, **options):
    found = []
    for model in pair:
        torch.manual_seed(0)
        found.append(model.generate(**given, **options))
    return found


def test_greedy_tokens_are_transformers_and_each_size_is_captured_once(pair, counted, sizes, device):
    given = prompts(device)
    for _ in range(2):  # the second generation reuses the cache and the steps of the first
        theirs_, ours = generate_both(pair, given, do_sample=False, max_new_tokens=10, eos_token_id=None)
        assert torch.equal(ours, theirs_)
    assert sizes == [3] * 18
    assert counted.captures == 1
    assert counted.replays == 1 + 18  # the first is the one that was compared with the eager step
    assert not cuda_graph_eligibility.eager_reasons()


def test_finished_sequences_leave_when_the_rest_fits_a_smaller_step(pair, counted, sizes, device):
    given = prompts(device, [[11 + i, 12, 13 + 2 * i] for i in range(5)])
    theirs_, ours = generate_both(pair, given, do_sample=True, max_new_tokens=24)
    assert torch.equal(ours, theirs_)
    assert set(sizes) <= {5, 4, 2, 1}
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1, "sequences must finish at different times: choose other prompts"
    assert counted.captures == len(set(sizes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_captured_and_eager(dtype, pair, counted, monkeypatch, device):
    """Both run the same kernels: the same tokens, and scores of the same bits."""
    ours = pair[1].to(dtype)
    found = []
    for graphs in (True, False):
        if not graphs:
            monkeypatch.setenv("BERTFAST_CUDA_GRAPHS", "0")
        options = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "return_dict_in_generate": True, "output_scores": True}
        found.append(ours.generate(**prompts(device, PROMPTS[1:2] * 2), **options))
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert all(map(torch.equal, found[0].scores, found[1].scores))
    assert counted.captures == 1
    assert cuda_graph_eligibility.eager_reasons() == {"BERTFAST_CUDA_GRAPHS=0": 1}


def test_sampling_with_processors_and_token_types(pair, counted, device):
    given = {**prompts(device), "token_type_ids": torch.tensor([[0, 0, 1, 1, 1], [0] * 5, [1] * 5], device=device)}
    theirs_, ours = generate_both(pair, given, do_sample=True, top_k=20, temperature=0.8, repetition_penalty=1.2, max_new_tokens=8)
    assert torch.equal(ours, theirs_)
    assert counted.captures >= 1


def test_a_later_generation_leaves_the_returned_cache_alone(pair, device):
    given = prompts(device, [[11, 12, 13], [21, 22, 23]])
    options = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": None, "return_dict_in_generate": True}
    theirs_, ours = generate_both(pair, given, **options)
    name = next(n for n in ("cache", "past_key_values") if ours.get(n) is not None)
    kept = [(layer.keys.clone(), layer.values.clone()) for layer in ours[name].layers]
    pair[1].generate(**prompts(device, [[5, 6, 7], [8, 9, 10]]), **options)
    for layer, (keys, values), reference in zip(ours[name].layers, kept, theirs_[name].layers, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
        torch.testing.assert_close(layer.keys, reference.keys)


WAITS = ("tolist", "item", "__bool__", "__int__", "__index__", "cpu", "numpy")


def test_no_token_waits_for_the_device(pair, monkeypatch, device):
    """On a GPU each method of WAITS waits. A generation may wait at its start, at a capture and at its end, at no token."""
    trackers: list[loop.FinishedTracker] = []
    if device.type == "cpu":  # as on a GPU: flags are read late, after an event, which here has always happened

        class PolledTracker(loop.FinishedTracker):
            def __init__(self, unfinished, each_step):
                super().__init__(unfinished, each_step)
                self.each_step = each_step
                trackers.append(self)

        class Event:
            record = query = lambda self: True

        monkeypatch.setattr(loop, "FinishedTracker", PolledTracker)
        monkeypatch.setattr(torch.cuda, "Event", Event)
    for module in (cuda, cuda_rows):  # it reads pinned host memory
        monkeypatch.setattr(module, "raise_out_of_range", lambda device: None)
    waits: list[str] = []

    def watch(name):
        real = getattr(torch.Tensor, name)

        def watched(self, *arguments):
            on_host = any(self is tracker.host for tracker in trackers)  # as a GPU's copies of these flags are
            if not on_host and (device.type == "cpu" or self.is_cuda):
                waits.append(name)
            return real(self, *arguments)

        monkeypatch.setattr(torch.Tensor, name, watched)

    for name in WAITS:
        watch(name)

    def generate(tokens: int) -> int:
        waits.clear()
        out = pair[1].generate(**prompts(device), do_sample=False, max_new_tokens=tokens, eos_token_id=V - 1)
        assert out.shape[1] == 5 + tokens
        return len(waits)

    generate(4)  # captures
    few = generate(4)
    assert few > 0, "nothing is watched"
    assert generate(25) == few


def test_finished_flags_that_are_read_late_change_no_token(pair, monkeypatch, sizes, device):
    """The tokens of steps after the last sequence has finished are cut off."""

    class LateTracker(loop.FinishedTracker):
        def __init__(self, unfinished, each_step):
            super().__init__(unfinished, each_step)
            self.each_step, self.seen = False, []

        def poll(self, unfinished):
            self.seen.append(unfinished.tolist())
            return self.seen[max(len(self.seen) - 4, 0)]

    monkeypatch.setattr(loop, "FinishedTracker", LateTracker)
    given = prompts(device, [[11 + i, 12, 13 + 2 * i] for i in range(3)])
    theirs_, ours = generate_both(pair, given, do_sample=True, max_new_tokens=40)
    assert theirs_.shape[1] < 43, "the sequences must finish early: choose other prompts"
    assert torch.equal(ours, theirs_)
    assert len(sizes) > ours.shape[1] - 3 - 1


def test_weights_that_move_are_captured_anew(pair, counted, device):
    given, options = prompts(device), {"do_sample": False, "max_new_tokens": 3, "eos_token_id": None}
    pair[1].generate(**given, **options)
    for model in pair:
        dense = model.bert.encoder.layer[0].output.dense
        dense.weight.data = dense.weight.data * -2
    theirs_, mine = generate_both(pair, given, **options)
    assert torch.equal(mine, theirs_)
    assert counted.captures == 2


def test_a_larger_generation_makes_a_larger_cache_and_a_smaller_one_reuses_it(pair, counted, device):
    ours = pair[1]
    options = {"do_sample": False, "eos_token_id": None}
    ours.generate(**prompts(device), max_new_tokens=3, **options)
    decoder = state_of(ours).idle_decoder
    assert (decoder.rows, decoder.capacity) == (4, 64)
    ours.generate(**prompts(device, PROMPTS[1:2]), max_new_tokens=3, **options)
    assert state_of(ours).idle_decoder is decoder
    ours.generate(**prompts(device, PROMPTS * 2), max_new_tokens=3, **options)
    assert state_of(ours).idle_decoder.rows == 8
    assert counted.captures == 3
    del decoder
    gc.collect()
    if device.type == "cuda":  # a stand-in's replay keeps its step alive
        assert len(cuda_graph_cache.cache) == 1


def test_the_least_recently_used_step_is_evicted(pair, monkeypatch, counted, device):
    monkeypatch.setattr(cuda_graph_cache, "cache", cuda_graph_cache.GraphCache(1))
    options = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 3}
    for rows, expected in ((PROMPTS, 1), (PROMPTS, 1), (PROMPTS[:2], 2), (PROMPTS, 3)):
        theirs_, ours = generate_both(pair, prompts(device, rows), **options)
        assert torch.equal(ours, theirs_)
        assert counted.captures == expected
    assert len(cuda_graph_cache.cache) == 1


def test_steps_are_freed_with_their_model(pair, monkeypatch, device):
    if device.type == "cpu":  # a stand-in's replay keeps the model alive
        monkeypatch.setattr(cuda_capture, "capture", lambda run, device: (lambda: None, run()))
        monkeypatch.setattr(cuda_decoder.torch, "equal", lambda a, b: True)
    freed = []
    model = copy.deepcopy(pair[1])
    model.generate(**prompts(device), do_sample=False, max_new_tokens=2, eos_token_id=None)
    weakref.finalize(state_of(model).idle_decoder, freed.append, True)
    del model
    gc.collect()
    assert freed == [True]


def test_a_step_that_cuda_cannot_capture_runs_eagerly(pair, monkeypatch, caplog, device):
    def refuse(run, device):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda_capture, "capture", refuse)
    theirs_, ours = generate_both(pair, prompts(device), do_sample=False, max_new_tokens=5, eos_token_id=None)
    assert torch.equal(ours, theirs_)
    assert cuda_graph_eligibility.eager_reasons() == {
        "CUDA could not capture the step: operation not permitted when stream is capturing": 4
    }
    assert len([r for r in caplog.records if "no CUDA graph for a step of 3 sequences" in r.getMessage()]) == 1


def test_beams_share_steps_of_one_size(pair, counted, sizes, device):
    """Beams change cache rows between replays: the rows are part of the captured state."""
    given = {**prompts(device), "token_type_ids": torch.tensor([[0, 0, 1, 1, 1], [0] * 5, [1] * 5], device=device)}
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 12, "return_dict_in_generate": True, "output_scores": True}
    for _ in range(2):
        theirs_, ours = generate_both(pair, given, do_sample=False, **options)
        assert torch.equal(ours.sequences, theirs_.sequences)
        assert torch.equal(ours.beam_indices, theirs_.beam_indices)
        torch.testing.assert_close(ours.sequences_scores, theirs_.sequences_scores, rtol=1e-4, atol=1e-4)
    parents = ours.beam_indices[:, :6]
    assert (parents[parents >= 0] % 3).unique().numel() == 3, "beams must change cache rows: choose other prompts"
    assert set(sizes) == {9}
    assert counted.captures == 1
    theirs_, ours = generate_both(pair, prompts(device), do_sample=False, max_new_tokens=10, eos_token_id=None)
    assert torch.equal(ours, theirs_), "three sequences in a decoder made for nine"


def test_a_step_that_replays_other_values_is_not_used(pair, monkeypatch, counted, device):
    def forgetful(run, device):
        replay, logits = counted(run, device)
        return (lambda: (replay(), logits["logits"].value.add_(1))), logits

    monkeypatch.setattr(cuda_capture, "capture", forgetful)
    theirs_, ours = generate_both(pair, prompts(device), do_sample=False, max_new_tokens=4, eos_token_id=None)
    assert torch.equal(ours, theirs_)
    assert list(cuda_graph_eligibility.eager_reasons()) == ["the first replay of a step gave other values than the eager step"]


def test_batch_invariant(pair, device):
    """A sequence's scores have the same bits alone and in a batch."""
    ours = pair[1]
    ours.batch_invariant = True
    options = {"do_sample": False, "max_new_tokens": 3, "eos_token_id": None, "return_dict_in_generate": True, "output_scores": True}
    together = ours.generate(**prompts(device, [[11, 12, 13], [21, 22, 23]]), **options)
    alone = ours.generate(**prompts(device, [[21, 22, 23]]), **options)
    for one, many in zip(alone.scores, together.scores, strict=True):
        assert torch.equal(one[0], many[1])


def test_no_op_of_a_generation_runs_on_the_reference(pair, monkeypatch, device):
    from bertfast.ops import reference

    for name in ("embed_layer_norm", "linear", "linear_concat", "add_layer_norm", "varlen_attention", "write_cache", "cached_attention"):
        monkeypatch.setattr(reference, name, None)
    pair[1].generate(**prompts(device), do_sample=False, max_new_tokens=3, eos_token_id=None)
    assert ops.has_kernels(device, torch.float32)


@pytest.mark.parametrize("B", [1, 7])
def test_the_exponential_race_draws_what_multinomial_draws(B, device):
    probabilities = torch.randn(B, 3000, device=device).softmax(dim=-1)
    for seed in range(20):
        torch.manual_seed(seed)
        want = torch.multinomial(probabilities, num_samples=1).squeeze(1)
        torch.manual_seed(seed)
        assert torch.equal(exponential_race(probabilities), want)
