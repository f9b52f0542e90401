"""Part VI: what models are fed: clean data, known things, other senses, other conditions."""
