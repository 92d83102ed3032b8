"""A drop-in for `recommenders.models.sasrec`: its PyTorch port, in recommenders' main branch since February 2026.

The modules `model`, `ssept`, `sampler` and `util` have the names and the behaviour of those of recommenders, so that
replacing `recommenders.models.sasrec` by `ssept_ext.recommenders` is the whole migration. docs/migrating.md lists what
differs on purpose. New code should rather import from `ssept_ext`: what is here only for compatibility is not there.

Examples
--------
>>> from ssept_ext.recommenders.model import SASREC, pad_sequences
>>> from ssept_ext.recommenders.sampler import WarpSampler
>>> from ssept_ext.recommenders.ssept import SSEPT
>>> from ssept_ext.recommenders.util import SASRecDataSet
>>> issubclass(SSEPT, SASREC)
True
"""
