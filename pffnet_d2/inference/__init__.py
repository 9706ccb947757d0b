"""From what a model returns to what people use."""
