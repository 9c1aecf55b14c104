"""The small core: words, rules and the loop of a search."""
