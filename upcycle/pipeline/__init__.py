"""Chains of stages; the only rooms that know several wings."""
