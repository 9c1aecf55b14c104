"""The parts of verification: plan, journal, runs, decision."""
