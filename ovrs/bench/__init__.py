"""Accuracy on labelled sets: readers, a resumable runner, tables, plots, and what the papers report."""
