"""Toy method, added as a user adds a method: settings and a model that keeps the contract."""
