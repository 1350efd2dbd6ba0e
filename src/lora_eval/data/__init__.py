"""Training data: files to conversations, and what is wrong with them."""
