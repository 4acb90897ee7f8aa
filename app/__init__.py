"""A small web page for one machine: drop pictures, say what they show, see heatmaps, scores and decisions."""
