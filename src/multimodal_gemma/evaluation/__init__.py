"""Scores that can be believed: official scorers, uncertainty, a fast exact generator, and a report with images."""
