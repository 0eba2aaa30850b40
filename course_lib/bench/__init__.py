"""Measuring the engine: against itself, against others, against what the machine could do."""
