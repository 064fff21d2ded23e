"""Mixtures of experts that stock transformers has, a file each; `families.pairs` joins them to dense models."""
