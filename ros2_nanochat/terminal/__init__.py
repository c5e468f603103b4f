"""Programs for a terminal: the chat, plain completion, compiling a model for MLC."""
