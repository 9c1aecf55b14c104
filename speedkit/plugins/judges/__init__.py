"""The built-in judges: how much of the human change a node reproduced."""
