"""Several processes that train one model: the only room that imports accelerate or torch.distributed."""
