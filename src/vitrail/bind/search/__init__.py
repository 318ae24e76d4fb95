"""Files of all senses, embedded into an index on disk and searched."""
