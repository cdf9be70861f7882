"""Work that is started once, kernel by kernel, and from then on as a whole: a CUDA graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

Work = Callable[[], None]


class Recorder(ABC):
    """Records what a device is asked to do. Tensors keep their places between recording and replay, and so must those
    that the work reads and writes; what the work does in Python is done when it is recorded, and not when it is
    replayed.
    """

    @abstractmethod
    def warm_up(self, work: Work) -> None:
        """Do the work once as usual, where it will be recorded: libraries set themselves up at their first call."""

    @abstractmethod
    def record(self, work: Work) -> Work:
        """Record the work without doing it, and return what does it."""


class CudaRecorder(Recorder):
    """CUDA graphs, of `torch.cuda.graph`, each with a pool of memory of its own."""

    def __init__(self, device: torch.device) -> None:
        self.stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm_up(self, work: Work) -> None:
        """Do the work once on the stream of recordings, between what came before and what comes after."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def record(self, work: Work) -> Work:
        """Capture the work as a graph, and return its replay on whichever stream is the present one."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.stream.device)
        # The first context comes back to the present stream even where the end of a recording raises. Threads of the
        # loader pin memory meanwhile, and NCCL's asks for events, so that only this thread's calls may count.
        with (
            torch.cuda.stream(current),
            torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"),
        ):
            work()
        return graph.replay


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaRecorder}
"""By the type of a device."""


class Repeated:
    """Work that is done many times: at first as usual, the second time to be recorded, and then by what was recorded.

    Args:
        work: the same each time, but for values on the device.
        recorder: of the device.
        failed: is told an error of the recording, and may raise it; the work is done as usual then.
    """

    def __init__(self, work: Work, recorder: Recorder, failed: Callable[[Exception], None]) -> None:
        self.work, self.recorder, self.failed = work, recorder, failed
        self.warm = False
        self.replay: Work | None = None

    def __call__(self) -> None:
        """Do the work once."""
        if self.replay is not None:
            self.replay()
        elif not self.warm:
            self.recorder.warm_up(self.work)
            self.warm = True
        else:
            self.replay = self._recorded()
            self.replay()

    def _recorded(self) -> Work:
        try:
            return self.recorder.record(self.work)
        except Exception as error:  # whatever a model or a device cannot do; nothing has been done yet
            self.failed(error)
            return self.work
