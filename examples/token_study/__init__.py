"""STMI with changes that might let its tokens tell images apart: `python -m examples.compare examples.token_study`."""
