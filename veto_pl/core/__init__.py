"""Shared nouns of all other folders: steps, ranks, memories, sampling settings, mistakes."""
