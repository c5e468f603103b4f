"""Messages, templates and the history of a conversation."""
