"""Pruning of single matrices: problems, oracles that share no code with the library, laws and faults, and the tests."""
