"""Helpers for all packages: atomic file replacement, argument checks, options, optional dependencies."""
