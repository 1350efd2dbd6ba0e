"""Statistics against SciPy, statsmodels, published figures and their own laws."""
