"""What everything else speaks in: steps, ranks, memories, sampling settings, mistakes."""
