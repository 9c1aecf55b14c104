"""Guards: what must hold before a node may count, one a file."""
