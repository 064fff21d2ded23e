"""To the Hub and to other readers."""
