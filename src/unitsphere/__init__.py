"""unitsphere: train, compress and compare text-embedding models."""

__version__ = "0.1.0"
