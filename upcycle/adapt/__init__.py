"""Adapter experts put beside a frozen dense model, composed of LoRAs, and merged into stock checkpoints."""
