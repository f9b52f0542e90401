"""Part VIII: reasoning, learning from rewards, and what is open."""
