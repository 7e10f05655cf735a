"""Which sequences of a generation have finished, as the host knows it."""

import torch
from torch import Tensor

POLL_EVERY = 8  # steps between copies of the flags from a GPU


class FinishedTracker:
    """On a GPU the flags arrive some steps late: no step waits for the device."""

    def __init__(self, unfinished: Tensor, each_step: bool) -> None:
        """unfinished: [B] bool. each_step: wait for the flags of every step, as on a CPU."""
        self.each_step = each_step or unfinished.device.type != "cuda"
        self.host = torch.ones(unfinished.shape, dtype=torch.bool, pin_memory=unfinished.device.type == "cuda")
        self.event: torch.cuda.Event | None = None
        self.steps = 0

    def poll(self, unfinished: Tensor) -> list[bool]:
        """Whether each row of the batch goes on, by the flags of this step or of the latest that have arrived."""
        self.steps += 1
        if self.each_step:
            return unfinished.tolist()
        if self.event is None and self.steps % POLL_EVERY == 0:
            self.incoming = unfinished.to("cpu", non_blocking=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
            self.event.record()
        if self.event is not None and self.event.query():  # type: ignore[no-untyped-call]  # torch's own
            self.host, self.event = self.incoming, None
        return self.host.tolist()
