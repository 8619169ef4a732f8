"""Training: one loop, three kinds of model."""
