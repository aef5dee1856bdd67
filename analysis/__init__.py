"""Tables of runs to scaling laws to reports; imports neither torch nor Ray."""
