"""What `upcycle convert` writes, read by other programs: `python -m tests.interop`, or `make interop`."""
