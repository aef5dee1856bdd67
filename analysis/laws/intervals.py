"""The intervals of every estimate: 90%, from draws or from a normal spread."""

Interval = tuple[float, float]

LEVEL = 0.9  # of every interval
NORMAL_90 = 1.6449  # half width of a 90% interval in standard deviations
