"""Reports: numbers, words, terminal, Markdown, HTML."""
