"""Faster implementations of functions defined elsewhere, each tested against its readable twin."""
