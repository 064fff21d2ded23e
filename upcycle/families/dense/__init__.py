"""Dense models, a file each; `families.pairs` joins them to their targets."""
