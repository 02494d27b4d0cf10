"""The rules of PyTorch's own ops, one family a file; importing this registers them all."""

from fxcompress.rules import conv, factory, linear, lookup, movement, norm, reduce

__all__ = ["conv", "factory", "linear", "lookup", "movement", "norm", "reduce"]
