"""The `speedkit` program: one module for each command."""
