"""Procedural image sets of any size: each image is a function of its split and index.

`leaves` are colour images of the dead-leaves model, the classic model of natural-image statistics
(Lee, Mumford and Huang 2001); `markov` are grey images whose probability is known exactly.
A name may carry a size and a number of training images: `leaves-16`, `markov-8-100000`.

Legend: `N` images, `C` colour channels, `S` pixels along one side, `K` disks of an image.
"""

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tarflow.data.splits import Split
from tarflow.errors import ConfigError

_VERSION = 1  # raise it when an index gives another image
_HELD_OUT = 2000  # images of the validation split, and of the test split
_CHUNK = 512  # images generated at a time

LEAF_CLASSES = 10
DISKS = 200  # a pixel stays background with probability 0.1%
RADII = (1 / 16, 1 / 2)  # smallest and largest radius, in image sides

LEVELS = 256  # grey levels of a markov image
SPREAD = 8.0  # standard deviation of the noise of a markov pixel, in grey levels
ORDER = 15  # number of pixels before it on which a markov pixel depends
PARTIAL, DECAY = 0.7, 0.5  # its partial correlation with the one k before is PARTIAL / k^DECAY


@dataclass(frozen=True)
class Procedural:
    """A procedural set of a given size."""

    kind: str  # leaves or markov
    image_size: int  # S
    images: int  # of the training split

    @property
    def digest(self) -> str:
        """Hash of the generator's name, version and parameters."""
        parameters = (
            (DISKS, RADII, LEAF_CLASSES)
            if self.kind == "leaves"
            else (LEVELS, SPREAD, ORDER, PARTIAL, DECAY)
        )
        content = (self.kind, _VERSION, self.image_size, self.images, _HELD_OUT, parameters)
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, S, S)."""
        return (3 if self.kind == "leaves" else 1, self.image_size, self.image_size)

    @property
    def classes(self) -> int:
        """Number of classes: one per palette of leaves; markov images have no labels."""
        return LEAF_CLASSES if self.kind == "leaves" else 0

    @property
    def counts(self) -> Mapping[str, int]:
        """Images in each split."""
        return {"train": self.images, "validation": _HELD_OUT, "test": _HELD_OUT}

    def fill(self, split: Split, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """Generate a split into `pixels` (N, C, S, S) and `labels` (N,)."""
        generate: Callable[..., NDArray[np.uint8]] = leaves if self.kind == "leaves" else markov
        labels[:] = np.arange(len(labels)) % max(1, self.classes)
        for start in range(0, len(pixels), _CHUNK):
            count = min(_CHUNK, len(pixels) - start)
            pixels[start : start + count] = generate(split, start, count, self.image_size)


def find_procedural(name: str) -> Procedural | None:
    """Return the procedural set of that name, or None if the name means another kind of data.

    Raises:
        ConfigError: If the size or the number of images is out of range.

    >>> find_procedural("leaves-16")
    Procedural(kind='leaves', image_size=16, images=20000)
    """
    match = re.fullmatch(r"(leaves|markov)(?:-(\d+))?(?:-(\d+))?", name)
    if match is None:
        return None
    kind, default_size = match[1], 32 if match[1] == "leaves" else 16
    source = Procedural(kind, int(match[2] or default_size), int(match[3] or 20000))
    if not 4 <= source.image_size <= 1024 or source.images < 1:
        raise ConfigError(f"data.name is {name}: write {kind}-SIZE-IMAGES, with SIZE 4 to 1024")
    return source


def leaves(split: Split, start: int, count: int, size: int) -> NDArray[np.uint8]:
    """Paint dead-leaves images `start` to `start + count`, (N, 3, S, S).

    Opaque disks fall on the plane, their radii r distributed as r^-3 between `RADII`; the image is
    a window on it. Among the disks that meet the window, larger ones are therefore more frequent,
    in proportion to the area their centre can lie in, (S + 2r)^2. The label, index modulo
    `LEAF_CLASSES`, sets the hue of the palette.
    """
    u = _uniforms(f"leaves {split}", start, count, 6 * DISKS).astype(np.float32)
    u = np.ascontiguousarray(u.reshape(count, 6, DISKS).transpose(1, 2, 0))  # (6, K, N)
    radius = _visible_radii(u[0], size)
    x, y = (u[axis] * (size + 2 * radius) - radius for axis in (1, 2))
    hue = (np.arange(start, start + count) % LEAF_CLASSES) / LEAF_CLASSES
    colours = _rgb(hue + 0.2 * (u[3] - 0.5), 0.2 + 0.7 * u[4], 0.15 + 0.85 * u[5])  # (K, N, 3)

    centres = np.arange(size, dtype=np.float32)[:, None] + np.float32(0.5)  # of the pixels
    top = np.zeros((size, size, count), np.uint8)  # the last disk to fall on each pixel
    covered, candidate = np.empty(top.shape, bool), np.empty(top.shape, np.uint8)
    for disk in range(1, DISKS):  # disk 0 is the background
        reach = radius[disk] ** 2 - (centres - y[disk]) ** 2  # (S, N)
        np.less((centres - x[disk]) ** 2, reach[:, None], out=covered)
        np.multiply(covered.view(np.uint8), np.uint8(disk), out=candidate)
        np.maximum(top, candidate, out=top)
    painted = colours[top, np.arange(count)]  # (S, S, N, 3)
    return np.ascontiguousarray(painted.transpose(2, 3, 0, 1))


def _visible_radii(u: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Map uniform numbers to radii with density r^-3 (S + 2r)^2, in pixels."""
    lowest, highest = (size * bound for bound in RADII)
    r = np.geomspace(lowest, highest, 1024)
    integral = -(size**2) / (2 * r**2) - 4 * size / r + 4 * np.log(r)
    share = (integral - integral[0]) / (integral[-1] - integral[0])
    return np.interp(u, share, r).astype(np.float32)


def _rgb(
    hue: NDArray[np.float64], saturation: NDArray[np.float32], value: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Turn hue, saturation and value (0 to 1, the hue periodic) into 8-bit RGB, (..., 3)."""
    sector = (np.array([5.0, 3.0, 1.0]) + 6 * hue[..., None]) % 6
    depth = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    rgb = 255 * value[..., None] * (1 - saturation[..., None] * depth)
    return np.asarray(np.rint(rgb), np.uint8)


def markov(split: Split, start: int, count: int, size: int) -> NDArray[np.uint8]:
    """Draw markov images `start` to `start + count`, (N, 1, S, S).

    In raster order, a pixel is its mean given the `ORDER` pixels before it plus Gaussian noise of
    standard deviation `SPREAD`, rounded and clipped to 0..255. Affine flows can reach the entropy,
    and there is always a weaker dependence to learn, as losses that follow power laws need.
    """
    from scipy.special import ndtri

    u = _uniforms(f"markov {split}", start, count, -(-(size**2) // 4) * 4)
    noise = SPREAD * ndtri(u)
    padded = _padded(np.full((count, size**2), _OUTSIDE))
    for place in range(size**2):
        value = np.rint(_mean(padded[:, place : place + ORDER]) + noise[:, place])
        padded[:, place + ORDER] = np.clip(value, 0, LEVELS - 1)
    return padded[:, ORDER:].astype(np.uint8).reshape(count, 1, size, size)


def markov_bits(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return -log2 P of markov images (N, 1, S, S), exact, in bits per dimension, (N,)."""
    grey = pixels.reshape(len(pixels), -1).astype(np.float64)
    mean = _mean(np.lib.stride_tricks.sliding_window_view(_padded(grey)[:, :-1], ORDER, axis=1))
    nats: NDArray[np.float64] = -markov_log_probability(grey, mean).mean(axis=1)
    return nats / math.log(2)


def markov_log_probability(
    value: NDArray[np.float64], mean: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return log P(value | mean) in nats: the Gaussian mass that rounds and clips to `value`."""
    from scipy.special import log_ndtr

    upper = np.where(value < LEVELS - 1, (value + 0.5 - mean) / SPREAD, np.inf)
    lower = np.where(value > 0, (value - 0.5 - mean) / SPREAD, -np.inf)
    # Take the nearer tail, where the difference of the two masses loses no digits.
    flip = lower + upper > 0
    upper, lower = np.where(flip, -lower, upper), np.where(flip, -upper, lower)
    # log(F(upper) - F(lower)), F the distribution function of the normal distribution
    outer = log_ndtr(upper)
    nats: NDArray[np.float64] = outer + np.log(-np.expm1(log_ndtr(lower) - outer))
    return nats


_OUTSIDE = 128.0  # value of the pixels before the first


def _padded(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put before flat images (N, S^2) what their first pixels depend on."""
    return np.pad(grey, ((0, 0), (ORDER, 0)), constant_values=_OUTSIDE)


def _mean(before: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of a pixel given those before it, (..., ORDER), the nearest last."""
    mean: NDArray[np.float64] = _OUTSIDE + (before - _OUTSIDE) @ _WEIGHTS[::-1]
    return mean


def _weights() -> NDArray[np.float64]:
    """Return the weights of the pixels before one, the nearest first, (ORDER,).

    They follow from the partial correlations by the recursion of Levinson and Durbin, which gives
    a stationary process whenever all of these are below 1.
    """
    weights = np.array([])
    for lag in range(1, ORDER + 1):
        partial = (-1) ** (lag // 2) * PARTIAL / lag**DECAY
        weights = np.append(weights - partial * weights[::-1], partial)
    return weights


_WEIGHTS = _weights()


def _uniforms(purpose: str, start: int, count: int, per_image: int) -> NDArray[np.float64]:
    """Draw numbers in (0, 1) for the images from `start` on, (N, per_image).

    They are raw Philox output, which numpy keeps across releases; its counter is the index.
    """
    if per_image % 4:
        raise ValueError("Philox counts in blocks of four")
    key = int.from_bytes(hashlib.sha256(f"{purpose} {_VERSION}".encode()).digest()[:16], "little")
    bits = np.random.Philox(key=key, counter=start * (per_image // 4))
    raw = bits.random_raw(count * per_image) >> np.uint64(12)
    high = raw.astype(np.float64)  # 52 bits, so that adding a half is exact
    return (high.reshape(count, per_image) + 0.5) * 2.0**-52
