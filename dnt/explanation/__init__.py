"""Explains networks: class activation maps, their faithfulness, and the images that activate a network most."""
