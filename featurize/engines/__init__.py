"""Where chunks are encoded, if not in this process."""
