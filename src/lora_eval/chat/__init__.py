"""Chat templates: messages to text and token ids, and which tokens train."""
