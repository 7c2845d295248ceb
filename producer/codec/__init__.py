"""How calls and results are written: JSON as kombu writes it, and arrays as raw bytes behind it."""
