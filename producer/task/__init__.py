"""The definition of a batch task, which callers and workers share."""
