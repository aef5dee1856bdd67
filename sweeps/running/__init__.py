"""Carries runs out on Ray, on whatever machines there are."""
