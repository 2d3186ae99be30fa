"""STMI: segmentation-guided tokens and cross-modal hypergraphs (AAAI 2026), composed from the public layers."""
