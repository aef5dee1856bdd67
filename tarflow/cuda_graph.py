"""CUDA graphs: work of fixed shapes, captured once and replayed as a single launch.

The host needs some microseconds to launch each operation, an accelerator often fewer to run it; a
replayed graph costs one launch however many operations it holds. On a CPU nothing is captured.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

Replay = Callable[[], None]


def supports_cuda_graphs(device: torch.device) -> bool:
    """Tell whether work on a device can be captured."""
    return device.type == "cuda"


def graph_pool(device: torch.device) -> Any:
    """Return an empty memory pool for graphs that are never replayed at the same time."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def capture(work: Callable[[], None], device: torch.device, pool: Any = None) -> Replay:
    """Run some work once, and return a function that runs it again on the same memory.

    Args:
        work: Function of fixed shapes that never waits for the device.
        device: CUDA device that it runs on.
        pool: Memory that the graph may share with others, from `graph_pool`.
    """
    side = torch.cuda.Stream(device)  # libraries must have been set up before the capture
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # "thread_local" because another thread may be copying a checkpoint to the host
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        work()
    return graph.replay


class CudaGraph:
    """A function of tensors, captured at its first call with given shapes and replayed after.

    The function returns nothing; it writes to tensors that outlive the call.
    """

    def __init__(
        self, function: Callable[..., None], device: torch.device, pool: Any = None
    ) -> None:
        self.function, self.device, self.pool = function, device, pool
        self._graphs: dict[tuple[Any, ...], tuple[list[Tensor | None], Replay]] = {}

    @property
    def captured(self) -> bool:
        """Tell whether calls can be replayed."""
        return bool(self._graphs)

    def __call__(self, *arguments: Tensor | None) -> None:
        """Call the function with the values of these tensors, of shapes seen before or not."""
        shapes = tuple(None if tensor is None else tensor.shape for tensor in arguments)
        if shapes not in self._graphs:
            inputs = [None if tensor is None else tensor.clone() for tensor in arguments]
            replay = capture(partial(self.function, *inputs), self.device, self.pool)
            self._graphs[shapes] = inputs, replay
            return
        inputs, replay = self._graphs[shapes]
        for kept, given in zip(inputs, arguments, strict=True):
            if kept is not None and given is not None:
                kept.copy_(given)
        replay()
