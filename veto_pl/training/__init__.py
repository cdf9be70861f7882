"""What surrounds a training step: windows of micro-batches, evaluation, sharding, optimizers, skipped steps."""
