"""Prepare ILSVRC, train AlexNet on it, and say how well it did."""

__version__ = "0.1.0"
