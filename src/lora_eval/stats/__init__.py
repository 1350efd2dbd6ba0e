"""Paired statistics: pure functions on arrays, NumPy and SciPy only."""
