"""Mutated records, bodies and files against every decoder of the product, and against running programs."""
