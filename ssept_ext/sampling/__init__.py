"""Training batches and negative samples."""

from ssept_ext.sampling.sampler import WarpSampler

__all__ = [
    "WarpSampler",
]
