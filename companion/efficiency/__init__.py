"""Part IV: attention, weights and numbers that cost less, and what is lost by it."""
