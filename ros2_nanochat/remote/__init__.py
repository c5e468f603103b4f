"""Models that run on servers: the engine's surface over HTTP, for servers with OpenAI's API and their kin."""
