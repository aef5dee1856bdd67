"""How long a training step takes on many workers, from arithmetic, memory and links.

    step         = products + traffic + launching + optimizer + waiting
    products     = training FLOPs of a worker's images / (PRODUCTS_SHARE * peak rate)
    traffic      = TRAFFIC_VALUES * C values per token and layer / memory bandwidth
    launching    = what LAUNCH_SECONDS per layer and pass are longer than products + traffic
    optimizer    = OPTIMIZER_VALUES per parameter that a worker updates / memory bandwidth
    exchange(b)  = b * ((g - 1) / (g * link) + (N - 1) / (N * g * network))
                   + messages * ((g - 1) * link latency + ceil(log2 N) * network latency)

for N nodes of g workers each. An exchange is a reduce-scatter or an all-gather of `b` bytes: rings
within the nodes (Patarasuk and Yuan 2009), trees between them, where the workers of a node send an
equal part each over a network port of their own (Thakur et al. 2005); both in the model of Hockney
(1994), a latency and a bandwidth. The host launches the work of a device and either is the slower
one. A measured MFU stands for all but the waiting.

- Replicated (DDP, Li et al. 2020, arXiv 2006.15704): an all-reduce, two exchanges, of the float32
  gradients once a step, in buckets of 25 MB. It goes on behind the backward pass of the last
  micro-batch, but for the last bucket, which waits for the end of it.
- Sharded (FSDP, Zhao et al. 2023, arXiv 2304.11277; volume as ZeRO-3, Rajbhandari et al. 2020,
  arXiv 1910.02054): each pass gathers the weights forward and again backward, in the type of the
  products, and scatters the float32 gradients, layer by layer, all behind the work on the layer
  before; the first layer has nothing to hide behind.

Waiting is what does not fit behind the work. Left out: the slowdown of products by the exchange
that goes on beside them, workers of unequal speed, and data, which `benchmarks/data_loading.py`
measures. Nothing here was measured on a large cluster.

Legend: `T` tokens per image, `C` channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tarflow import cost
from tarflow.config import RunConfig, round_images

PRODUCTS_SHARE = 0.6  # of the peak that large matrix products reach on an accelerator, assumed
TRAFFIC_VALUES = 54  # read or written by norms, residuals and GELU: 18 forward, twice it backward
LAUNCH_SECONDS = 1e-3  # of the host for a layer, forward and backward; 1.2 to 2.1 on a Xeon core
OPTIMIZER_VALUES = 10  # float32: clipping 3 (norm, scale), AdamW 7 (w, g, m, v in; w, m, v out)
AVERAGE_VALUES = 3  # of the weight average: two in, one out
BUCKET_BYTES = 25 * 2**20  # of gradients that are sent together


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Equal workers on equal nodes, one device each, and what joins them."""

    device: cost.Accelerator
    nodes: int = 1
    per_node: int = 8  # workers
    network: float = 25e9  # bytes per second between nodes, each way, per worker
    link_latency: float = 5e-6  # seconds per message within a node
    network_latency: float = 15e-6  # seconds per message between nodes
    overlaps: bool = True  # exchanges cost the worker no time of its own; not so on CPUs

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
    launching: float  # what the device waits for the host to give it work
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
        values = images * model.tokens * layers * model.channels
        updated = weights / (cluster.workers if sharded else 1)
        per_weight = OPTIMIZER_VALUES + (AVERAGE_VALUES if config.optim.ema else 0)
        products = work * flops / (PRODUCTS_SHARE * peak)
        traffic = work * values * TRAFFIC_VALUES * narrow / device.bandwidth
        launches = work * passes * layers * LAUNCH_SECONDS
        launching = max(0.0, launches - products - traffic)
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
        buckets = math.ceil(weights * 4 / BUCKET_BYTES)
        communication = 2 * cluster.exchange(weights * 4, buckets)
        waiting = _unhidden(communication, backward, buckets)
    if not cluster.overlaps:
        waiting = communication
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
