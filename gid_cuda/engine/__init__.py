"""Training and evaluation: `trainer.train`, `evaluation.evaluate`, `checkpoint.load_detector`."""
