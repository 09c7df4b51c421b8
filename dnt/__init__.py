"""dnt: train, understand and fine-tune deep networks in JAX and Flax."""
