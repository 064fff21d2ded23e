"""Trying a model at the prompt."""
