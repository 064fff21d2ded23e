"""Other formats of weights (GGUF, pickles) as safetensors, converted once into a cache."""
