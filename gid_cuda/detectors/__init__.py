"""Detectors as distillation sees them: `outputs` has the shared types, each other file adapts one detector."""
