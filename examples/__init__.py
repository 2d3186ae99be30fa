"""Programs built from the layers; run them from the repository root."""
