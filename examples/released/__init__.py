"""Checkpoints released by the authors of the methods, converted to our models."""
