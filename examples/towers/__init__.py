"""Towers of the methods: a small ViT, a CNN, pretrained towers and text encoders."""
