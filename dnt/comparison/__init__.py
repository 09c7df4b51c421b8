"""Variants of a config side by side: what to run, the runs, and their results."""
