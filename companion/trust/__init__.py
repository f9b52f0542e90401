"""Part VII: what a model does, to whom, and how it is told."""
