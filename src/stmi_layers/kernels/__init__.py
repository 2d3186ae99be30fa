"""Faster implementations of functions of this package, each tested against its readable reference."""
