"""How long a training step takes on many accelerators, from arithmetic, memory and links.

    step         = products + traffic + launching + optimizer + waiting
    products     = training FLOPs of a worker's images / (PRODUCTS_SHARE * narrow * peak rate)
    narrow       = C / (C + BALANCE * peak rate * bytes per value / memory bandwidth)
    traffic      = VALUE_BYTES * C per token and layer / memory bandwidth
    launching    = LAYER_SECONDS per layer and pass, whatever the batch
    optimizer    = OPTIMIZER_VALUES per parameter that a worker updates / memory bandwidth
    exchange(b)  = b * ((g - 1) / (g * link) + (N - 1) / (N * g * network))
                   + messages * ((g - 1) * link latency + ceil(log2 N) * network latency)

for N nodes of g workers each. An exchange is a reduce-scatter or an all-gather of `b` bytes: rings
within the nodes (Patarasuk and Yuan 2009), trees between them, where the workers of a node send an
equal part each over a network port of their own (Thakur et al. 2005); both in the model of Hockney
(1994), a latency and a bandwidth. A measured MFU stands for all but the waiting.

- Replicated: an all-reduce, two exchanges, of the float32 gradients after the last pass of a step.
- Sharded (FSDP, Zhao et al. 2023, arXiv 2304.11277; volume as ZeRO-3, Rajbhandari et al. 2020,
  arXiv 1910.02054): each pass gathers the weights forward and again backward, in the type of the
  products, and scatters the float32 gradients, layer by layer, all behind the work on the layer
  before; the first layer has nothing to hide behind. Such steps are not replayed: the host
  launches their operations one by one, and the slower of host and device counts.

The constants of a worker are fitted to 23 steps measured on an H100 (`docs/step-time.md`), which
they give within 25%, 8% as a rule. Waiting is what does not fit behind the work. Left out: the
slowdown of products by an exchange beside them, workers of unequal speed, and data, which
`benchmarks/data_loading.py` measures. No link and no network was measured.

Legend: `T` tokens per image, `C` channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tarflow import cost
from tarflow.config import RunConfig, round_images

PRODUCTS_SHARE = 0.75  # of the peak that the products of a very wide model reach
BALANCE = 0.7  # narrow products wait for memory: at a width of so many FLOPs per value, half
VALUE_BYTES = 280  # moved per value of a layer by norms, residuals, GELU, attention, conversions
COMPILED_VALUE_BYTES = 120  # the same where the compiler has fused them
LAYER_SECONDS = 0.3e-3  # of the device for a layer without work: its replayed kernels
HOST_SECONDS = 10e-3  # of the host for a divided layer, whose operations are launched one by one
OPTIMIZER_VALUES = 10  # float32: clipping 3 (norm, scale), AdamW 7 (w, g, m, v in; w, m, v out)
AVERAGE_VALUES = 3  # of the weight average: two in, one out


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Equal workers on equal nodes, one device each, and what joins them."""

    device: cost.Accelerator
    nodes: int = 1
    per_node: int = 8  # workers
    network: float = 25e9  # bytes per second between nodes, each way, per worker
    link_latency: float = 5e-6  # seconds per message within a node
    network_latency: float = 15e-6  # seconds per message between nodes

    @property
    def workers(self) -> int:
        """Workers in all."""
        return self.nodes * self.per_node

    def exchange(self, size: float, messages: int) -> float:
        """Return the seconds of a reduce-scatter or all-gather of `size` bytes in messages."""
        near, far = self.per_node, self.nodes
        seconds = size * (near - 1) / (near * self.device.link)
        seconds += size * (far - 1) / (far * near * self.network)
        hops = (near - 1) * self.link_latency + math.ceil(math.log2(far)) * self.network_latency
        return seconds + messages * hops


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, and their parts."""

    products: float  # matrix products; with a measured MFU all that a worker does by itself
    traffic: float  # activations between memory and device
    launching: float  # of kernels, or what the device waits for the host
    optimizer: float
    communication: float  # exchanges, if nothing hid them
    waiting: float  # what of them is not hidden
    images: int  # of all workers
    sharded: bool

    @property
    def alone(self) -> float:
        """Seconds if nothing had to be exchanged."""
        return self.products + self.traffic + self.launching + self.optimizer

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.alone + self.waiting

    @property
    def efficiency(self) -> float:
        """Share of the step that is not spent waiting for others."""
        return self.alone / self.seconds

    @property
    def limit(self) -> str:
        """Name what takes the largest part."""
        parts = {
            "products": self.products,
            "memory bandwidth": self.traffic,
            "launching": self.launching,
            "optimizer": self.optimizer,
            "communication": self.waiting,
        }
        return max(parts, key=lambda name: parts[name])


def step_time(config: RunConfig, cluster: Cluster, mfu: float = 0.0) -> StepTime:
    """Predict a step; `config.execution.workers` is taken from the cluster.

    Args:
        config: of the run; its batch is that of all workers.
        cluster: what it runs on.
        mfu: measured on one worker with as many images, as a share of the device's peak; 0 has
            the time follow from the assumed shares.
    """
    config = replace(config, execution=replace(config.execution, workers=cluster.workers))
    device, model = cluster.device, config.model
    images = -(-config.batch // cluster.workers)
    passes = -(-images // cost.micro_batch(config, device.memory))
    sharded = cost.sharded(config, device.memory)
    again = config.execution.checkpoint_activations
    wide = config.precision in ("float32", "float64")
    peak = device.flops["float32" if wide else "bfloat16"]
    flops = float(cost.training_flops(model)) * images
    narrow = cost.NARROW.get(config.precision, 2 if config.precision == "auto" else 4)
    weights, layers = cost.params_total(model), model.blocks * model.layers
    if mfu:
        products = flops / (mfu * peak)
        traffic = launching = optimizer = 0.0
    else:
        work = 4 / 3 if again else 1.0  # the forward pass of a layer is done twice
        balance = BALANCE * peak * narrow / device.bandwidth
        share = PRODUCTS_SHARE * model.channels / (model.channels + balance)
        values = images * model.tokens * layers * model.channels
        moved = COMPILED_VALUE_BYTES if config.execution.compile else VALUE_BYTES
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
    forward = one_pass * (0.25 if again else 1 / 3)
    backward = one_pass - forward
    if sharded:
        gather = cluster.exchange(weights * narrow, layers)
        scatter = cluster.exchange(weights * 4, layers)
        communication = passes * (2 * gather + scatter)
        waiting = _unhidden(gather, forward, layers) + _unhidden(
            gather + scatter, backward, layers
        )
        waiting *= passes
    else:
        communication = waiting = 2 * cluster.exchange(weights * 4, 1)
    every = images * cluster.workers
    return StepTime(
        products, traffic, launching, optimizer, communication, waiting, every, sharded
    )


def _unhidden(seconds: float, behind: float, parts: int) -> float:
    """Return what is left of an exchange in parts behind some work; one part never hides."""
    return max(seconds - behind, seconds / parts)


def weak_scaling(
    config: RunConfig, cluster: Cluster, nodes: Sequence[int], mfu: float = 0.0
) -> list[StepTime]:
    """Predict steps on more and more nodes, each worker with as many images as on the cluster."""
    share = -(-config.batch // cluster.workers)
    steps = []
    for count in nodes:
        wider = replace(cluster, nodes=count)
        batch = share * wider.workers
        grown = replace(config, batch=batch, images=round_images(config.images, batch))
        steps.append(step_time(grown, wider, mfu))
    return steps
