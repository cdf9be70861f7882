"""What a run needs before it runs: memory per device, and arithmetic per optimizer step."""
