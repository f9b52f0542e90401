"""Part V: which text to write once the probabilities are known, and how to hold it to a wish."""
