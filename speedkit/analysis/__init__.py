"""From runs to results."""
