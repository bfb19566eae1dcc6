"""Image classifiers under 200,000 parameters."""

__version__ = "0.1.0"
