"""One study of flows: its runs, its laws, and what to train next."""
