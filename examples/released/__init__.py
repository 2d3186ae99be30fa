"""Checkpoints that the authors of the methods released, carried over to the models here."""
