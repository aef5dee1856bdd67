"""How good a trained flow is: bits per dimension, sample quality, checks of its mathematics."""
