"""Chat templates: turn messages into a prompt."""
