"""Compiles the programs of a run for hardware that is not here, and says what they need of it."""
