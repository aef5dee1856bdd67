"""Searches with Optuna: what may change, what is tried next, what is stopped early."""
