"""Latents of an autoencoder instead of pixels: encode tables, decode samples, fine-tune decoders.

Everything but `space` needs the extra `latents`: pip install 'tarflow[latents]'.
"""
