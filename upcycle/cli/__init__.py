"""The command line: argv becomes one call into `upcycle.pipeline`. click and rich live here and nowhere else."""
