"""The full STMI model, its data, trainer and evaluation, composed from the public layers."""
