"""How good a model is beyond plain accuracy."""
