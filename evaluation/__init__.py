"""Testing: from a loaded run to anomaly maps, image scores, metrics and pictures."""
