"""What a run costs before it runs, and ratios for a goal."""
