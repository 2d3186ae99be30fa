"""Retrieval by image, text and mask at once, from the layers that are read out of FusionSegReID / PS-ReID."""
