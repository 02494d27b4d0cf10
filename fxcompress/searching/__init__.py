"""The search for the best smaller models that keep a budget."""

from fxcompress.searching.run import search

__all__ = ["search"]
