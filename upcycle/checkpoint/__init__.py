"""Bytes on disk: strict in, crash-safe out. No torch."""
