"""Latents of an autoencoder instead of pixels: encode tables, decode samples, fine-tune decoders.

Needs the extra `latents`: pip install 'tarflow[latents]'.
"""
