"""Forks within forks, each level calling a model and joining its child: `python -m tests.runtime.nested_forks DEPTH ROUNDS`.

Other threads call the model and replace its weights meanwhile, so that every fork finds locks held, pools starting and states being made.
Ends with status 0, or with 1 where a child failed or hung.
"""

import faulthandler
import os
import signal
import sys
import threading
from typing import Any

import torch
from torch import Tensor, nn

import bertfast
from tests import builders

PATIENCE = 120  # seconds for a child


def parallel_op() -> None:
    torch.ones(1 << 18).add_(1.0)


class Level:
    """A process of the chain: calls from three threads while it forks the next one."""

    def __init__(self, model: Any, arguments: dict[str, Tensor], expected: Tensor) -> None:
        self.model, self.arguments, self.expected = model, arguments, expected
        self.wrong = False
        self.stop = threading.Event()

    def call(self) -> None:
        with torch.no_grad():
            actual = self.model(**self.arguments).last_hidden_state
        if not torch.equal(actual, self.expected):
            self.wrong = True
            print(f"wrong values in process {os.getpid()}: {(actual - self.expected).abs().max()}", flush=True)

    def call_on(self) -> None:
        while not self.stop.is_set():
            self.call()
            parallel_op()

    def replace_weights_on(self) -> None:
        while not self.stop.is_set():
            for module in self.model.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        setattr(module, name, nn.Parameter(parameter.detach().clone()))
            self.stop.wait(0.01)

    def run(self, depth: int) -> bool:
        """Whether this level and all below it were right."""
        self.stop.clear()  # the parent's threads do not exist here
        threads = [threading.Thread(target=target) for target in (self.call_on, self.call_on, self.replace_weights_on)]
        for thread in threads:
            thread.start()
        self.call()
        parallel_op()
        status = 0
        if depth > 0:
            if (child := os.fork()) == 0:
                signal.alarm(PATIENCE)
                os._exit(0 if Level(self.model, self.arguments, self.expected).run(depth - 1) else 1)
            self.call()
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status:
                print(f"exit status {status} of process {child} at depth {depth - 1}", flush=True)
            self.call()
        self.stop.set()
        for thread in threads:
            thread.join()
        return status == 0 and not self.wrong


def main(depth: int, rounds: int) -> int:
    torch.set_num_threads(2)
    bertfast.set_num_threads(3)
    model = builders.pair("BertModel", **builders.SMALL)[1]
    arguments = builders.batch("BertModel", model, 8, 24, "right")
    with torch.no_grad():
        expected = model(**arguments).last_hidden_state
    faulthandler.register(signal.SIGALRM, chain=True)  # says where, then the process ends
    return 0 if all(Level(model, arguments, expected).run(depth) for _ in range(rounds)) else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
