"""The training loop: one step, its state on disk, and what runs share."""
