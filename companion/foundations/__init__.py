"""Part I: words, probability and learning."""
