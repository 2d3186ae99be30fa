"""Tools that make or check data: inspection, masks, captions, the synthetic set."""
