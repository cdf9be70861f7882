"""Models behind HTTP: an OpenAI-compatible server, asked within bounds of time and length."""
