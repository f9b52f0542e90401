"""Measure the companion side by side with what people would use instead: ``make bench``."""
