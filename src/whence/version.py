"""The version of whence, written once."""

__version__ = "0.1.0"
