"""Compiled kernels for training on CPUs; nothing else knows of them."""
