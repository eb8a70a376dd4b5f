"""How the micro checkpoints are trained from nothing: losses and recipes that the pipeline itself does not need."""
