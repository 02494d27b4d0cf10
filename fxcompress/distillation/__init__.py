"""A smaller model trained against the one that it was made from."""
