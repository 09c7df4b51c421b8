"""Compares variants of a config: plans the runs, runs them and collects their results."""
