"""The decoder of the BPD bound: the distribution of an 8-bit pixel given its denoised value."""

from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 256
BINS = 48  # of the denoised value; on digits, 64 or more cost bits and 32 save none
NEIGHBOURS = 8  # bins that smooth each other


@dataclass(frozen=True)
class Decoder:
    """A table of P(grey level | bin of the denoised value), shared by all pixels.

    Half of the bin edges are evenly spaced and half are quantiles of the training pixels, so that
    bins are fine where denoised values are dense. The counts of a bin are smoothed with those of
    its neighbours, and these with the counts of all pixels: every probability is positive, every
    row sums to one.
    """

    edges: Tensor  # (K - 1,) increasing inner edges of K bins
    log_probability: Tensor  # (K, 256) nats

    @classmethod
    def fit(cls, denoised: Tensor, pixels: Tensor, bins: int = BINS) -> "Decoder":
        """Count grey levels of training pixels (uint8) in bins of their denoised values."""
        values = denoised.flatten().double()
        levels = pixels.flatten().long()
        steps = torch.linspace(0, 1, bins // 2 + 1, dtype=torch.float64)[1:-1]
        ordered = values.sort().values
        quantiles = ordered[(steps * (len(ordered) - 1)).long()]
        edges = torch.cat([quantiles, 2 * steps - 1]).unique()
        counts = _counts(torch.bucketize(values, edges), levels, len(edges) + 1)
        groups = torch.arange(len(counts)) // NEIGHBOURS
        coarse = torch.zeros(int(groups.max()) + 1, LEVELS, dtype=torch.float64)
        coarse.index_add_(0, groups, counts)
        marginal = _smoothed(counts.sum(0), torch.full((LEVELS,), 1 / LEVELS, dtype=counts.dtype))
        probability = _smoothed(counts, _smoothed(coarse, marginal)[groups])
        return cls(edges.to(denoised.dtype), probability.log().to(denoised.dtype))

    def log_prob(self, denoised: Tensor, pixels: Tensor) -> Tensor:
        """Return log P(pixels | denoised) in nats, summed over each image: (B,)."""
        rows = torch.bucketize(denoised.contiguous(), self.edges.to(denoised))
        picked = self.log_probability.to(denoised)[rows, pixels.long()]
        return picked.flatten(1).sum(1)


def _counts(bins: Tensor, levels: Tensor, size: int) -> Tensor:
    flat = torch.bincount(bins * LEVELS + levels, minlength=size * LEVELS)
    return flat.reshape(size, LEVELS).double()


def _smoothed(counts: Tensor, towards: Tensor) -> Tensor:
    """Return probabilities from counts, smoothed towards others (Witten and Bell 1991).

    The more distinct levels a row has shown, the more weight goes to those it has not.
    """
    kinds = (counts > 0).sum(-1, keepdim=True).clamp(min=1)
    return (counts + kinds * towards) / (counts.sum(-1, keepdim=True) + kinds)
