"""The executors: what runs a node's script.

This module, and those that a supervisor process is made of (``supervisor``, ``capture``,
``failures``, ``processes``, ``scratch``), import the standard library and one another
only, so that a supervisor starts in a few hundredths of a second.
"""
