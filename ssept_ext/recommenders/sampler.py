"""The sampler of recommenders: `ssept_ext.WarpSampler` has its interface."""

from ssept_ext.sampling.sampler import WarpSampler

__all__ = ["WarpSampler"]
