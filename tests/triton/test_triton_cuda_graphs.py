"""Forwards captured as CUDA graphs and replayed. Without a GPU, CountedCapture stands in for CUDA's capture; the rest is as on a GPU."""

import copy
import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from test_triton_model import check, inputs
from test_triton_model import pair as pair_of

from bertfast.batch.attention import VarlenAttention
from bertfast.batch.masks import read_mask
from bertfast.batch.packed import GraphInputs, PackedBatch
from bertfast.engine import cpu_plans, cuda_buffers, cuda_capture, cuda_graph_cache, cuda_graph_eligibility, cuda_graphs
from bertfast.engine.cuda_buffers import Bucket, CapturedOutput, bucket_of
from bertfast.graph.heads import HeadOutput
from bertfast.ops.cuda import rows as cuda_rows

pytestmark = pytest.mark.usefixtures("cuda_path")


class CountedCapture:
    """Counts captures and replays. Without a GPU, a replay runs the forward again on the same buffers, into the same outputs."""

    def __init__(self) -> None:
        self.captures, self.replays = 0, 0
        self.outputs: list[dict[str, HeadOutput]] = []
        self.real = cuda_capture.capture

    def __call__(self, run: Callable[[], dict[str, HeadOutput]], device: torch.device) -> tuple[Callable[[], None], dict[str, HeadOutput]]:
        self.captures += 1
        play, logits = self.real(run, device) if device.type == "cuda" else (None, run())
        self.outputs.append(logits)

        def replay() -> None:
            self.replays += 1
            if play is not None:
                play()
                return
            for name, each in run().items():
                logits[name].value.copy_(each.value)

        return replay, logits


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> CountedCapture:
    stand_in = CountedCapture()
    monkeypatch.delenv("BERTFAST_CUDA_GRAPHS", raising=False)
    monkeypatch.setattr(cuda_capture, "capture", stand_in)
    monkeypatch.setattr(cuda_graph_cache, "cache", cuda_graph_cache.GraphCache(cuda_graph_cache.MAX_GRAPHS))
    monkeypatch.setattr(cuda_graph_eligibility, "_reasons", Counter())
    monkeypatch.setattr(cpu_plans, "run", cuda_graphs.run)  # as for a tensor on a GPU
    monkeypatch.setattr(cpu_plans, "run_eagerly", cuda_graphs.run_eagerly)
    return stand_in


def pair(head: str, dtype: torch.dtype, device: torch.device, **config) -> tuple[torch.nn.Module, torch.nn.Module]:
    ours, original = pair_of(head, dtype, device, num_hidden_layers=1, **config)
    ours.keep_padding = False  # padded queries are not captured
    return ours, original


def padded(*lengths: int, device: torch.device, columns: int | None = None) -> dict[str, torch.Tensor]:
    columns = columns or max(lengths)
    return inputs([[1] * n + [0] * (columns - n) for n in lengths], device)


def test_buckets():
    assert bucket_of(1, 1, 1) == Bucket(32, 1, 64)
    assert bucket_of(1024, 8, 128) == Bucket(1024, 8, 128)
    assert bucket_of(1025, 9, 129) == Bucket(1152, 16, 256)
    assert bucket_of(600, 5, 512) == Bucket(640, 8, 512)
    assert bucket_of(600, 5, 513).longest == 1024
    rungs = set()
    for rows in range(1, cuda_graph_eligibility.MAX_ROWS + 1):
        rung = bucket_of(rows, 1, 64).rows
        assert rows <= rung <= max(rows + 31, rows * 9 // 8)
        assert bucket_of(rung, 1, 64).rows == rung
        rungs.add(rung)
    assert len(rungs) < cuda_graph_cache.MAX_GRAPHS


@pytest.mark.parametrize("head", ["BertModel", "BertForSequenceClassification", "BertForTokenClassification", "BertForQuestionAnswering"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_one_graph_serves_every_batch_of_its_bucket(head, dtype, counted, device):
    ours, reference = pair(head, dtype, device)
    for given in (padded(7, 3, 5, device=device), padded(1, 2, 1, 4, device=device), padded(6, 6, 6, device=device)):
        check(ours, reference, given)
    assert counted.captures == 1
    assert counted.replays == 1 + 3  # the first is the one that was compared with the eager forward
    assert not cuda_graph_eligibility.eager_reasons()


def test_causal(counted, device):
    ours, reference = pair("BertLMHeadModel", torch.float16, device, is_decoder=True, use_cache=False)
    for given in (padded(7, 3, device=device), padded(2, 2, device=device)):
        check(ours, reference, given)
    assert counted.captures == 1


def test_the_padding_of_a_bucket_reaches_no_output(counted, device):
    """Rows past the real ones hold NaN from the first layer on, as uninitialised memory does in these tests."""
    ours, _ = pair("BertModel", torch.float16, device)
    with torch.no_grad():
        for given in (padded(9, 4, 2, device=device), padded(3, 8, 1, device=device)):
            out = ours(**given)
            T = int(given["attention_mask"].sum())
            [captured] = counted.outputs
            assert captured["last_hidden_state"].value.shape[0] == 32
            assert captured["last_hidden_state"].value[T:].isnan().any()
            assert out.last_hidden_state.isfinite().all()
            assert out.pooler_output.isfinite().all()
            assert (out.last_hidden_state[given["attention_mask"] == 0] == 0).all()


@pytest.fixture
def tf32() -> Iterator[Callable[[bool], None]]:
    """Sets torch's switch; its value before is restored."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    yield lambda allowed: setattr(matmul, "allow_tf32", allowed)
    matmul.allow_tf32 = before


def test_all_that_kernels_depend_on_is_in_the_key(tf32, counted, device):
    ours, _ = pair("BertModel", torch.float32, device)
    given = padded(3, 2, device=device)
    without_types = {name: t for name, t in given.items() if name != "token_type_ids"}
    tf32(False)
    with torch.no_grad():
        for expected, arguments in ((1, given), (2, without_types), (2, given), (3, padded(2, 2, 2, device=device))):
            ours(**arguments)
            assert counted.captures == expected
        tf32(True)
        ours(**given)
        assert counted.captures == 4
        tf32(False)
        ours(**given)
        assert counted.captures == 4
        ours.pooler = None
        ours(**given)
        assert counted.captures == 5


def test_weights_changed_in_place_are_seen_and_moved_ones_captured_anew(counted, device):
    ours, reference = pair("BertModel", torch.float32, device)
    given = padded(5, 3, device=device)
    check(ours, reference, given)
    for model in (ours, reference):
        model.encoder.layer[0].output.dense.weight.data.mul_(0.5)
    check(ours, reference, given)
    assert counted.captures == 1
    for model in (ours, reference):
        model.encoder.layer[0].output.dense.weight.data = model.encoder.layer[0].output.dense.weight.data * 2
    check(ours, reference, given)
    assert counted.captures == 2
    assert len(cuda_graph_cache.cache) == 1


def test_the_least_recently_used_graph_is_evicted(monkeypatch, counted, device):
    monkeypatch.setattr(cuda_graph_cache, "cache", cuda_graph_cache.GraphCache(2))
    ours, _ = pair("BertModel", torch.float32, device)
    a, b, c = (2,), (2, 1), (1, 1, 1)  # one, two and four sequences: a bucket each
    with torch.no_grad():
        for lengths, expected in ((a, 1), (b, 2), (a, 2), (c, 3), (a, 3), (b, 4)):
            ours(**padded(*lengths, device=device))
            assert counted.captures == expected
    assert len(cuda_graph_cache.cache) == 2


def test_graphs_are_freed_with_their_model(monkeypatch, counted, device):
    real = counted.real  # a stand-in's replay keeps the model alive
    monkeypatch.setattr(cuda_capture, "capture", lambda run, device: (lambda: None, run()) if device.type == "cpu" else real(run, device))
    ours, _ = pair("BertModel", torch.float32, device)
    other, _ = pair("BertModel", torch.float32, device)
    with torch.no_grad():
        ours(**padded(3, device=device))
        other(**padded(3, device=device))
    assert len(cuda_graph_cache.cache) == 2
    del ours
    gc.collect()
    assert len(cuda_graph_cache.cache) == 1


def test_a_later_call_leaves_outputs_alone(device):
    ours, _ = pair("BertModel", torch.float32, device)
    first_given, second_given = padded(5, 3, device=device), padded(2, 6, device=device)
    with torch.no_grad():
        first = ours(**first_given)
        before = copy.deepcopy(first)
        ours(**second_given)
    for name in first:
        assert torch.equal(first[name], before[name])


def test_replays_of_several_threads_are_serialized(device):
    ours, _ = pair("BertModel", torch.float32, device)
    batches = [padded(5, 3, device=device), padded(1, 7, device=device), padded(4, 4, device=device)]
    with torch.no_grad():
        want = [ours(**given).last_hidden_state for given in batches]
    wrong = []

    def work(given, expected) -> None:
        with torch.no_grad():
            wrong.extend(given for _ in range(2) if not torch.equal(ours(**given).last_hidden_state, expected))

    threads = [threading.Thread(target=work, args=pair_) for pair_ in zip(batches, want, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_under_grad_mode_a_graph_is_used_and_gradients_are_right(counted, device):
    ours, reference = pair("BertForSequenceClassification", torch.float32, device)
    given = padded(5, 3, device=device)
    for model in (ours, reference):
        model(**given).logits.sum().backward()
    assert counted.captures == 1
    torch.testing.assert_close(ours.classifier.weight.grad, reference.classifier.weight.grad)


REASONS = {
    "BERTFAST_CUDA_GRAPHS=0": {},
    "inputs_embeds": {},
    "padding is kept": {},
    "attention under a mask": {},
    "more than": {},
    "cross-attention": {"is_decoder": True, "add_cross_attention": True, "use_cache": False},
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_call_that_no_cuda_graph_can_hold_runs_eagerly_with_a_reason(reason, monkeypatch, counted, device):
    ours, reference = pair("BertModel", torch.float32, device, **REASONS[reason])
    given = padded(5, 3, device=device)
    if reason == "BERTFAST_CUDA_GRAPHS=0":
        monkeypatch.setenv("BERTFAST_CUDA_GRAPHS", "0")
    if reason == "inputs_embeds":
        given = {"inputs_embeds": torch.randn(2, 5, 64, device=device), "attention_mask": given["attention_mask"]}
    if reason == "padding is kept":
        ours.keep_padding = True
    if reason == "attention under a mask":
        given["attention_mask"] = given["attention_mask"][:, None, :].expand(2, 5, 5).bool()[:, None]
    if reason == "more than":
        monkeypatch.setattr(cuda_graph_eligibility, "MAX_ROWS", 7)
    if reason == "cross-attention":
        given["encoder_hidden_states"] = torch.randn(2, 4, 64, device=device)
    check(ours, reference, given)
    assert counted.captures == 0
    [(said, count)] = cuda_graph_eligibility.eager_reasons().items()
    assert reason in said
    assert count == 1


def test_a_forward_that_cuda_cannot_capture_runs_eagerly(monkeypatch, caplog, device):
    def refuse(run, device):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda_capture, "capture", refuse)
    ours, reference = pair("BertModel", torch.float32, device)
    for _ in range(2):
        check(ours, reference, padded(5, 3, device=device))
    assert cuda_graph_eligibility.eager_reasons() == {
        "CUDA could not capture the forward: operation not permitted when stream is capturing": 2
    }
    assert len([r for r in caplog.records if "no CUDA graph for BertModel" in r.getMessage()]) == 1


def test_a_graph_that_replays_other_values_is_not_used(monkeypatch, counted, device):
    def forgetful(run, device):
        replay, logits = counted(run, device)
        return (lambda: (replay(), logits["pooler_output"].value.add_(1))), logits

    monkeypatch.setattr(cuda_capture, "capture", forgetful)
    ours, reference = pair("BertModel", torch.float32, device)
    check(ours, reference, padded(5, 3, device=device))
    assert list(cuda_graph_eligibility.eager_reasons()) == ["the first replay gave other values for pooler_output than the eager forward"]


def test_the_deferred_unpack_keeps_its_fill(counted, device):
    ours, _ = pair("BertForQuestionAnswering", torch.float16, device)
    given = padded(5, 3, device=device)
    with torch.no_grad():
        ours(**given)
        out = ours(**given)
    assert (out.start_logits[given["attention_mask"] == 0] == -1e4).all()
    [graph] = cuda_graph_cache.cache.entries()
    assert {name: (each.padded_rows, each.fill) for name, each in graph.outputs.items() if isinstance(each, CapturedOutput)} == {
        "logits": (True, -1e4)
    }


def test_an_id_out_of_range_is_named_by_the_next_call(counted, device):
    """A replay runs no Python op that could check, so the call does."""
    ours, _ = pair("BertModel", torch.float32, device)
    given = padded(3, 2, device=device)
    with torch.no_grad():
        ours(**given)
        wrong = {**given, "input_ids": given["input_ids"].clone()}
        wrong["input_ids"][0, 0] = 97

        def run() -> None:
            ours(**wrong)
            if device.type == "cuda":
                torch.cuda.synchronize()
                ours(**given)

        with pytest.raises(ValueError, match=r"input_ids: got 97, expected 0 <= input_ids < 97"):
            run()
        assert ours(**given).last_hidden_state.isfinite().all()
    assert counted.captures == 1


def test_a_trial_says_why_calls_run_eagerly(monkeypatch, counted, device):
    """`bertfast info` shows it."""
    ours, _ = pair("BertForTokenClassification", torch.float16, device)
    assert cuda_graph_eligibility.why_eager_trial(ours) is None
    assert counted.captures == 1
    monkeypatch.setenv("BERTFAST_CUDA_GRAPHS", "0")
    for _ in range(2):
        assert cuda_graph_eligibility.why_eager_trial(ours) == "BERTFAST_CUDA_GRAPHS=0"


WAITS = ("tolist", "item", "__bool__", "__int__", "__index__", "cpu", "numpy", "nonzero")


@pytest.mark.parametrize("mask", ["none", "host", "device"])
def test_the_host_waits_for_the_device_once_at_most(mask, monkeypatch, device):
    """It waits for the number of tokens, where the mask lies on the device. Every tensor method that waits is watched."""
    from bertfast.ops import cuda

    if mask == "device" and device.type == "cpu":  # pretend that the mask is on another device
        from bertfast.batch import inputs as batch_inputs

        real = read_mask

        class OnAnotherDevice(torch.Tensor):
            device = torch.device("meta")

        monkeypatch.setattr(batch_inputs, "read_mask", lambda given, device: real(given.as_subclass(OnAnotherDevice), device))
    for module in (cuda, cuda_rows):  # it reads pinned host memory
        monkeypatch.setattr(module, "raise_out_of_range", lambda device: None)
    ours, _ = pair("BertForTokenClassification", torch.float16, device)
    given = padded(5, 3, device=device)
    where = {"none": None, "host": given["attention_mask"].cpu(), "device": given["attention_mask"]}[mask]
    given = {name: t for name, t in given.items() if name != "attention_mask"} | ({} if where is None else {"attention_mask": where})
    waits: list[str] = []

    def watch(name: str) -> None:
        plain = getattr(torch.Tensor, name)

        def watched(self, *arguments):
            if device.type == "cpu" or self.is_cuda:
                waits.append(name)
            with torch._C.DisableTorchFunctionSubclass():
                return plain(self, *arguments)

        monkeypatch.setattr(torch.Tensor, name, watched)

    with torch.no_grad():
        ours(**given)  # captures
        for name in WAITS:
            watch(name)
        ours(**given)
    assert waits == (["cpu"] if mask == "device" else [])


def test_work_queued_before_an_error_is_waited_for(monkeypatch):
    """The next user of the graphs' memory waits for the event of the last one, even if that one raised."""

    class Stream:
        def __init__(self):
            self.waited, self.recorded = [], 0

        def wait_event(self, event):
            self.waited.append(event)

        def record_event(self):
            self.recorded += 1
            return f"event {self.recorded}"

    stream, gpu = Stream(), torch.device("cuda", 0)
    monkeypatch.setattr(cuda_graph_cache, "stream_of", lambda device: stream)
    monkeypatch.setattr(cuda_graph_cache, "_last_use", {})

    def fail() -> None:
        with cuda_graph_cache.serialized(gpu):
            raise ValueError("an id")

    with pytest.raises(ValueError, match="an id"):
        fail()
    with cuda_graph_cache.serialized(gpu):
        assert stream.waited == ["event 1"]
    assert stream.recorded == 2


def test_buffers_of_a_graph_wait_for_every_stream_that_reads_them(monkeypatch):
    """A graph's memory may be freed and reused while another stream than the allocating one still reads it."""
    ids, cu = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 4], dtype=torch.int32)
    batch = PackedBatch(GraphInputs(ids, None, ids, ids, VarlenAttention(cu, cu, 4, 4)), 1, 4, None, None, ids[:1])
    monkeypatch.setattr(cuda_buffers, "stage", lambda *batches: None)
    graph = cuda_graphs.CapturedForward(cuda_buffers.static_batch(Bucket(32, 1, 64), batch), lambda: None, {}, "stream")
    waiting: list[tuple[int, str]] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: waiting.append((self.data_ptr(), stream)))
    for stream, expected in (("stream", 0), ("another", 6)):
        monkeypatch.setattr(cuda_graph_cache, "stream_of", lambda device, stream=stream: stream)
        graph.run(SimpleNamespace(batch=batch))
        assert waiting == [(t.data_ptr(), stream) for t in graph.batch.buffers()][:expected]
    assert len(waiting) == 6


def test_a_graph_is_captured_on_a_stream_of_its_device(monkeypatch, counted):
    """torch's default is one stream for the process, of the device that was current first."""
    seen = []

    class Context:
        def __init__(self, *what, **how):
            seen.append((what, how))

        __enter__ = __exit__ = lambda self, *error: None

    class CUDAGraph:
        replay = staticmethod(lambda: None)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", CUDAGraph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "device", Context)
    monkeypatch.setattr(torch.cuda, "graph", Context)
    monkeypatch.setattr(cuda_capture, "_pools", {})
    cuda_capture._side_stream.cache_clear()
    counted.real(dict, torch.device("cuda", 1))
    cuda_capture._side_stream.cache_clear()
    (where, _), (_, how) = seen
    assert where == (torch.device("cuda", 1),)
    assert how == {"pool": "pool", "stream": "stream of cuda:1", "capture_error_mode": "thread_local"}


def test_calls_that_run_eagerly_are_counted_by_reason(counted, device):
    ours, _ = pair("BertLMHeadModel", torch.float16, device, is_decoder=True, use_cache=False)
    with torch.no_grad():
        ours(**padded(5, 3, device=device), logits_to_keep=1)
        ours(**padded(5, 3, device=device), output_hidden_states=True)
    assert cuda_graph_eligibility.eager_reasons() == {"logits_to_keep is set": 1, "hidden states are returned": 1}
    assert counted.captures == 0
