"""The one mechanism that makes checkpoints: a plan is data, built before any tensor is touched, then executed."""
