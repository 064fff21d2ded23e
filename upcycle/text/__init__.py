"""Reads files and data sets, turns their records into tokens, and packs these into training sequences."""
