"""From models and a request to a plan: reads headers and side files, never weights."""
