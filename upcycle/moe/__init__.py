"""What stock transformers lacks: loading layer by layer, measures, probes. Torch lives here."""
