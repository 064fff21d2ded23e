"""Mixtures of experts in torch: routing, losses and figures, adapter experts, models read layer by layer."""
