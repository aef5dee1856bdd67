"""From tables of runs to scaling laws to pages; imports neither torch nor Ray."""
