"""Where flash-attention comes from, and how it gets into a prefix."""
