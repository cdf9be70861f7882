"""Pure mathematics over log-probabilities. Imports torch and math only; use it without Lightning or transformers."""
