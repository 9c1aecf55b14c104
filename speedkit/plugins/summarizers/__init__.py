"""The summarizers: what later prompts see of an outcome."""
