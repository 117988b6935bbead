"""Pictures: detections, general instances, GI-score heat maps, curves, and the table that compares runs."""
