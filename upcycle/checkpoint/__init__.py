"""Reads checkpoints strictly and writes outputs so that a crash never leaves one that looks finished; no torch."""
