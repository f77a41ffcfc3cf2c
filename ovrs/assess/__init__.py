"""Accuracy: samples, comparison with reference data, areas with intervals."""
