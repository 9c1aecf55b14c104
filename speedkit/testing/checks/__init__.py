"""What is asked of components: a module for each kind, a generator for each promise.

A check yields a sentence for each fault. Its name is what ``skip`` takes.
"""
