"""Towers the methods stand on: a small ViT, a CNN, pretrained towers, text encoders."""
