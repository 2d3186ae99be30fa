"""Training and evaluation of any ReID model: data, sampler, objective, loop, protocol, checkpoint."""
