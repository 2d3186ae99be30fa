"""IDEA: captions inverted into image tokens, and cooperative deformable aggregation."""
