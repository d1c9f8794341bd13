"""Benchmarks: medians and pairwise ratios of interleaved runs. Nothing here is a test."""
