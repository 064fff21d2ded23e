"""Measurements of what upcycle promises; `make bench` runs them and writes `results.md`."""
