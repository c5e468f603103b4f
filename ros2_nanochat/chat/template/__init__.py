"""Chat templates: from messages to a prompt."""
