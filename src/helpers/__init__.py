"""Helpers of the book on context features in chromatin foundation models."""

__version__ = "0.1.0"
