"""The knowledge sources: texts given to the coder."""
