"""Predict how long a training step takes on many accelerators: arithmetic, memory and links.

    step         = products + traffic + launching + optimizer + waiting
    products     = training FLOPs of a worker's images / (PRODUCTS_SHARE * narrow * peak rate)
    narrow       = C / (C + BALANCE * peak rate * bytes per value / memory bandwidth)
    traffic      = VALUE_BYTES * C per token and layer / memory bandwidth
    launching    = LAYER_SECONDS per layer and pass, whatever the batch
    optimizer    = OPTIMIZER_VALUES per parameter that a worker updates / memory bandwidth
    exchange(b)  = b * ((g - 1) / (g * link) + (N - 1) / (N * g * network))
                   + messages * ((g - 1) * link latency + ceil(log2 N) * network latency)

for N nodes of g workers each. An exchange is a reduce-scatter or an all-gather of `b` bytes: rings
within the nodes (Patarasuk and Yuan 2009) and trees between them, where each worker of a node
sends an equal share over its own network port (Thakur et al. 2005). Both follow the model of
Hockney (1994), a latency and a bandwidth. A measured MFU replaces all terms except waiting.

- Replicated: one all-reduce, which is two exchanges, of the float32 gradients after the last pass.
- Sharded (FSDP, Zhao et al. 2023, arXiv 2304.11277; volume as ZeRO-3, Rajbhandari et al. 2020,
  arXiv 1910.02054): layer by layer, each pass gathers the weights forward and again backward, in
  the precision of the products, and scatters the float32 gradients. Each exchange overlaps with
  work on the layer before; the first layer has nothing to overlap with. No CUDA graph replays
  such a step: the host launches each operation, and the slower of host and device counts.

The constants of a worker are fitted to 25 steps measured on an H100 (`docs/step-time.md`) and
predict them within 25%, typically within 8%. Waiting is the part of the exchanges that does not
overlap with work. The prediction ignores that an exchange slows down the products beside it, that
workers differ in speed, and data loading, which `benchmarks/data_loading.py` measures. It has not
been tested on links or networks.

Legend: `T` tokens per image, `C` channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tarflow import cost
from tarflow.config import RunConfig, round_images

PRODUCTS_SHARE = 0.75  # share of the peak rate that the products of a very wide model reach
BALANCE = 0.7  # width, in FLOPs per value, at which waiting for memory halves that share
VALUE_BYTES = 280  # moved per value of a layer by norms, residuals, GELU, attention, conversions
COMPILED_VALUE_BYTES = 120  # the same with kernels that torch.compile has fused
FUSED_VALUE_BYTES = 60  # the same with our own kernels, and hidden states in bfloat16
LAYER_SECONDS = 0.3e-3  # device time of a layer without work: its replayed kernels
HOST_SECONDS = 10e-3  # host time to launch the operations of a sharded layer
OPTIMIZER_VALUES = 10  # float32: clipping 3 (norm, scale), AdamW 7 (w, g, m, v in; w, m, v out)
PER_NODE = 8  # most accelerators on a node
AVERAGE_VALUES = 3  # float32, for the weight average: two in, one out


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Equal nodes of equal workers, one device each, and the links between them."""

    device: cost.Accelerator
    nodes: int = 1
    per_node: int = 8  # workers on each node
    network: float = 25e9  # bytes per second between nodes, in each direction, per worker
    link_latency: float = 5e-6  # seconds per message within a node
    network_latency: float = 15e-6  # seconds per message between nodes

    @property
    def workers(self) -> int:
        """Workers on all nodes."""
        return self.nodes * self.per_node

    def exchange(self, size: float, messages: int) -> float:
        """Return the seconds of a reduce-scatter or all-gather of `size` bytes in messages."""
        g, n = self.per_node, self.nodes
        seconds = size * (g - 1) / (g * self.device.link) + size * (n - 1) / (n * g * self.network)
        latency = (g - 1) * self.link_latency + math.ceil(math.log2(n)) * self.network_latency
        return seconds + messages * latency


def smallest_cluster(device: cost.Accelerator, workers: int) -> Cluster:
    """Return the fewest equal nodes, of up to eight workers each, that hold the workers."""
    nodes = next(n for n in range(-(-workers // PER_NODE), workers + 1) if workers % n == 0)
    return Cluster(device=device, nodes=nodes, per_node=workers // nodes)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step by cause."""

    products: float  # matrix products; with a measured MFU, all work of one worker
    traffic: float  # activations to and from memory
    launching: float  # launching kernels, or waiting for the host to do so
    optimizer: float
    communication: float  # all exchanges
    waiting: float  # the part of them that does not overlap with work
    images: int  # of all workers
    sharded: bool

    @property
    def alone(self) -> float:
        """Seconds of the step without exchanges."""
        return self.products + self.traffic + self.launching + self.optimizer

    @property
    def seconds(self) -> float:
        """Seconds of the step."""
        return self.alone + self.waiting

    @property
    def efficiency(self) -> float:
        """Share of the step in which a worker does not wait for others."""
        return self.alone / self.seconds

    @property
    def limit(self) -> str:
        """Name of the cause that takes longest."""
        causes = {
            "products": self.products,
            "memory bandwidth": self.traffic,
            "launching": self.launching,
            "optimizer": self.optimizer,
            "communication": self.waiting,
        }
        return max(causes, key=lambda name: causes[name])


def step_time(config: RunConfig, cluster: Cluster, mfu: float = 0.0) -> StepTime:
    """Predict the time of a step.

    Args:
        config: Run, whose batch all workers share; the cluster sets the number of workers.
        cluster: Nodes to run on.
        mfu: Share of the device's peak rate that one worker reached with as many images, by the
            FLOPs of `tarflow.cost`; 0 predicts the work from the constants of this module.
    """
    config = replace(config, execution=replace(config.execution, workers=cluster.workers))
    if config.precision == "auto":
        config = replace(config, precision=config.accelerator_precision)
    device, model = cluster.device, config.model
    images = -(-config.batch // cluster.workers)
    passes = -(-images // cost.micro_batch(config, device.memory))
    sharded = cost.sharded(config, device.memory)
    recomputed = config.execution.checkpoint_activations
    wide = config.precision in ("float32", "float64")
    peak = device.flops["float32" if wide else "bfloat16"]
    flops = float(cost.training_flops(model)) * images
    narrow = cost.NARROW.get(config.precision, 4)
    weights, layers = cost.params_total(model), model.total_layers
    if mfu:
        products = flops / (mfu * peak)
        traffic = launching = optimizer = 0.0
    else:
        work = 4 / 3 if recomputed else 1.0  # every layer runs its forward pass twice
        balance = BALANCE * peak * narrow / device.bandwidth
        share = PRODUCTS_SHARE * model.channels / (model.channels + balance)
        values = images * model.tokens * layers * model.channels
        moved = COMPILED_VALUE_BYTES if config.execution.compile else VALUE_BYTES
        fusible = model.positions == "learned"
        if fusible and config.execution.fused and not sharded and config.precision != "float64":
            moved = FUSED_VALUE_BYTES * (1 if narrow < 4 else 2)
        updated = weights / (cluster.workers if sharded else 1)
        per_weight = OPTIMIZER_VALUES + (AVERAGE_VALUES if config.optim.ema else 0)
        products = work * flops / (share * peak)
        traffic = work * values * moved / device.bandwidth
        launches = work * passes * layers
        launching = launches * LAYER_SECONDS
        if sharded:
            launching = max(launching, launches * HOST_SECONDS - products - traffic)
        optimizer = updated * per_weight * 4 / device.bandwidth
    one_pass = (products + traffic + launching) / passes
    forward = one_pass * (0.25 if recomputed else 1 / 3)
    backward = one_pass - forward
    if sharded:
        gather = cluster.exchange(weights * narrow, layers)
        scatter = cluster.exchange(weights * 4, layers)
        communication = passes * (2 * gather + scatter)
        waiting = _exposed(gather, forward, layers)
        waiting = passes * (waiting + _exposed(gather + scatter, backward, layers))
    else:
        communication = waiting = 2 * cluster.exchange(weights * 4, 1)
    images *= cluster.workers
    return StepTime(
        products, traffic, launching, optimizer, communication, waiting, images, sharded
    )


def _exposed(exchange: float, work: float, layers: int) -> float:
    """Return the seconds of an exchange that do not overlap with work: at least one layer's."""
    return max(exchange - work, exchange / layers)


def weak_scaling(
    config: RunConfig, cluster: Cluster, nodes: Sequence[int], mfu: float = 0.0
) -> list[StepTime]:
    """Predict steps on several numbers of nodes, with the images per worker of the cluster."""
    share = -(-config.batch // cluster.workers)
    steps = []
    for count in nodes:
        wider = replace(cluster, nodes=count)
        batch = share * wider.workers
        grown = replace(config, batch=batch, images=round_images(config.images, batch))
        steps.append(step_time(grown, wider, mfu))
    return steps
