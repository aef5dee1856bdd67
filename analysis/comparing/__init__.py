"""Studies, recipes and choices side by side."""
