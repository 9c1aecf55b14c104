"""A family whose records have known times, so that nothing is measured before a search."""

from __future__ import annotations

FAMILY = """\
schema = 1
name = "instant"
script = "train.py"

[target]
val_loss = 3.0

[run]
launcher = "python"

[[record]]
index = 1
title = "start"
script = "train.py"
time_ms = 1000

[[record]]
index = 2
title = "target"
time_ms = 500
"""
