"""The model: properties, in milliseconds."""
