"""Training: what a step is made of, the loop around it, and what it leaves so that a killed run continues."""
