"""What a network sees: class activation maps, how faithful they are, and the pictures that excite it most."""
