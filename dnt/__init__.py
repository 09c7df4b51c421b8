"""dnt: train, understand and fine-tune deep networks in JAX and Flax."""

__version__ = '0.1.0'
