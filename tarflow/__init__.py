"""TarFlow: a Transformer autoregressive normalizing flow for images, and one run of it.

Importing this package imports neither torch nor Ray, so that plans, help and
configuration stay instant.
"""

__version__ = "0.1.0"
