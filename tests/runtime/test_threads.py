"""The thread pool: forks, concurrent callers, and idle threads."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bertfast import _C
from bertfast.ops import cpu


@pytest.fixture(autouse=True)
def restore_threads():
    before = _C.get_num_threads()
    yield
    _C.set_num_threads(before)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


FORK = """
import os, sys, torch
from bertfast import _C
from bertfast.ops import cpu
torch.set_num_threads(1)  # torch's parallel ops hang in a forked child
_C.set_num_threads({threads})
x, weight, bias = torch.randn(300, 256), torch.randn(512, 256), torch.randn(512)
expected = cpu.linear(x, weight, bias)                     # the pool has started
for generation in range(2):                                # a child, and a child of that child
    if (child := os.fork()) != 0:
        _, status = os.waitpid(child, 0)
        assert torch.equal(cpu.linear(x, weight, bias), expected)
        print(_C.get_num_threads())
        sys.stdout.flush()
        os._exit(os.waitstatus_to_exitcode(status))
    for _ in range(20):
        assert torch.equal(cpu.linear(x, weight, bias), expected)
"""


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_forked_child_has_its_own_threads(threads):
    assert run_python(FORK.format(threads=threads)).split() == [str(threads)] * 2


def test_a_forked_child_reads_the_default_again():
    """A DataLoader worker sets torch to one thread after the fork; the parent's number must not remain."""
    code = """
import os, torch
torch.set_num_threads(3)
from bertfast import _C
from bertfast.ops import cpu
assert _C.get_num_threads() == 3
if (child := os.fork()) == 0:
    torch.set_num_threads(1)
    os._exit(_C.get_num_threads())
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""
    assert run_python(code).split() == ["1"]


def test_concurrent_callers_get_their_own_results():
    _C.set_num_threads(3)
    weight, bias = torch.randn(200, 128), torch.randn(200)
    inputs = [torch.randn(rows, 128) for rows in (1, 7, 50, 400)]
    expected = [cpu.linear(x, weight, bias, "gelu") for x in inputs]

    def work(i: int) -> bool:
        return all(torch.equal(cpu.linear(inputs[i], weight, bias, "gelu"), expected[i]) for _ in range(100))

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(work, range(4)))


def test_the_number_of_threads_can_change_between_calls():
    x, weight, bias = torch.randn(500, 96), torch.randn(96, 96), torch.randn(96)
    expected = cpu.linear(x, weight, bias)
    for threads in (1, 4, 2, 8, 1, 3):
        _C.set_num_threads(threads)
        assert _C.get_num_threads() == threads
        assert torch.equal(cpu.linear(x, weight, bias), expected)


def test_a_negative_number_of_threads_is_refused():
    with pytest.raises(ValueError, match="num_threads: got -1, expected 1 or more, or 0 for the default"):
        _C.set_num_threads(-1)


def test_idle_threads_use_no_cpu():
    _C.set_num_threads(4)
    cpu.linear(torch.randn(500, 96), torch.randn(96, 96), torch.randn(96))
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1  # spinning threads would have used at least 0.5 s


FLUSH = """
import torch
from bertfast import _C
from bertfast.ops import cpu
_C.set_num_threads({threads})
x, weight, bias = torch.full((384, 64), 2.0 ** -70), torch.full((512, 64), 2.0 ** -70), torch.zeros(512)
kept = cpu.linear(x, weight, bias)  # the pool has started
torch.set_flush_denormal(True)
flushed = [cpu.linear(x, weight, bias) for _ in range(100)]
torch.set_flush_denormal(False)
again = [cpu.linear(x, weight, bias) for _ in range(100)]
bits = lambda t: t.view(torch.int32)  # as floats, denormals equal 0 to torch
print(int(bits(kept).ne(0).all()), int(any(bits(t).any() for t in flushed)), int(all(bits(t).equal(bits(kept)) for t in again)))
"""


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_all_threads_take_the_callers_floating_point_environment(threads):
    assert run_python(FLUSH.format(threads=threads)).split() == ["1", "0", "1"]


FOLLOW = """
import os, threading, torch
torch.set_num_threads(3)
import bertfast
from transformers import BertConfig
config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=99)
model = bertfast.BertModel(config).eval()
ids = torch.arange(8)[None]
def threads():
    with torch.no_grad():
        model(ids)
    return bertfast.get_num_threads()
seen = [threads()]
torch.set_num_threads(1)
seen.append(threads())
other = threading.Thread(target=lambda: (torch.set_num_threads(2), seen.append(threads())))
other.start(); other.join()
seen += [threads()]  # this thread has changed nothing since
bertfast.set_num_threads(4)
torch.set_num_threads(1)
torch.set_num_threads(3)
seen.append(threads())
print(*seen)
"""


def test_torch_set_num_threads_counts_after_the_first_call_too():
    assert run_python(FOLLOW).split() == ["3", "1", "2", "2", "4"]


HELD = """
import os, signal, sys, threading, torch
torch.set_num_threads(1)
import bertfast
from transformers import BertConfig
from bertfast.engine.model_state import state_of
config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=99)
model = bertfast.BertModel(config).eval()
ids = torch.arange(8)[None]
with torch.no_grad():
    expected = model(ids).last_hidden_state
lock_types = type(threading.Lock()), type(threading.RLock())
named = {name: value for path, module in list(sys.modules.items()) if path.startswith("bertfast")
         for name, value in vars(module).items() if isinstance(value, lock_types)}
locks = [*named.values(), state_of(model).plans._lock, state_of(model).layouts._lock]
assert len(locks) >= 4, named
held, done = threading.Event(), threading.Event()
def hold():
    for lock in locks:
        lock.acquire()
    held.set()
    done.wait()
    for lock in locks:
        lock.release()
holder = threading.Thread(target=hold)
holder.start()
held.wait()
if (child := os.fork()) == 0:
    signal.alarm(20)
    for parameter in model.parameters():  # a new state, new plans, new layouts
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        for length in (8, 8, 7):
            actual = model(ids[:, :length]).last_hidden_state
            assert length != 8 or torch.equal(actual, expected)
    for lock in locks:
        assert lock.acquire(timeout=1)
    os._exit(0)
_, status = os.waitpid(child, 0)
done.set()
holder.join()
print(status)
"""


def test_a_child_forked_while_another_thread_holds_our_locks():
    assert run_python(HELD).split() == ["0"]
