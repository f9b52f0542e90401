"""Part II: the Transformer, from one head of attention to two real models."""
