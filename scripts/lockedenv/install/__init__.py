"""A bare machine -> an environment: the order of steps, the two backends, fetching, flash-attn."""
