"""The flow and its densities: pure PyTorch, where a reader should start (`flow.py`)."""
