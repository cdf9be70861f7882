"""How a configuration becomes a run: the parser, its messages, and LightningCLI."""
