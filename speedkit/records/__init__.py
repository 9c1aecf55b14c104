"""The built-in families of records."""
