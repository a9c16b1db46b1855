"""What a run looked like: overlays, reports, likeness."""
