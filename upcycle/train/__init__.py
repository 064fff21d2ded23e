"""Continued training: the loop, its state and its measurements."""
