"""What a run writes and reads: checkpoints, journals, the run folder, and how writers meet a disk that refuses."""
