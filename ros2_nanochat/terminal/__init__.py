"""Terminal programs: the chat, plain completion, and compiling a model for MLC."""
