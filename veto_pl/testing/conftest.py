"""Settings of the conformance suite."""

import torch

# Threads of tiny products wait for each other longer than they work.
torch.set_num_threads(1)
