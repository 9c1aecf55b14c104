"""The coders: language models, and the controls that need none."""
