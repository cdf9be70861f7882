"""The parts of objectives: divergences, targets, supports, weightings, advantages, schedules and contexts."""
