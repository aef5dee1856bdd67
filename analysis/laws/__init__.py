"""Scaling laws: forms, fits, uncertainty, validation, and how a budget is best spent."""
