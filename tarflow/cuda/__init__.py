"""Triton kernels for NVIDIA GPUs: training and decoding with fewer passes over memory."""
