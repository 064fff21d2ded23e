"""Trains a model further: the loop, its step, its objective, its optimizer and its data."""
