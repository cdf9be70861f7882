"""The command with pauses in its steps, so that a signal finds it at work. Arguments: two pauses, the command."""

import sys
import time
from unittest.mock import patch

import torch

from veto_pl import DistillationModule
from veto_pl.commands.main import main

if __name__ == "__main__":
    training, validation, *command = sys.argv[1:]
    torch.set_num_threads(1)

    def paused(name, seconds):
        original = getattr(DistillationModule, name)

        def step(self, batch, batch_idx):
            if self.trainer.fit_loop.epoch_loop.batch_progress.total.ready:  # not in the baseline
                print(f"in {name}", flush=True)
                time.sleep(seconds)
            return original(self, batch, batch_idx)

        return patch.object(DistillationModule, name, step)

    with paused("training_step", float(training)), paused("validation_step", float(validation)):
        main(command)
