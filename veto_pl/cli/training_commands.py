"""Lightning's commands, which train and measure, and what `--help` says of them."""

SUMMARIES = {
    "fit": "Train a student, validate it, and export it.",
    "validate": "Measure a student on the validation rows.",
    "test": "Measure a student on the test rows, and write its answers.",
    "predict": "Write what a student answers to the test rows.",
}
TRAINING = tuple(SUMMARIES)
"""Their names."""
