"""Exporters: from what was measured to what is shipped."""
