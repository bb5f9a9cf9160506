"""Gaussian processes on features: evidence, hyper-parameters, updates of the prior, paths."""
