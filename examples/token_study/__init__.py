"""Study of changes to STMI that might let its tokens tell images apart, for `examples.compare examples.token_study`."""
