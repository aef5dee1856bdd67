"""Noise to images: the inverse of a flow, guided or not, and the fastest way to compute it."""
