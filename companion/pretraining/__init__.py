"""Part III: objectives that turn text into a model, and what carries over to new tasks."""
