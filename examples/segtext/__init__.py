"""Retrieval by image, text and mask at once, from layers in our reading of FusionSegReID / PS-ReID."""
