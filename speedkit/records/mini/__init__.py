"""mini: a small speedrun of byte-level language models that fits two CPU cores."""
