"""What is looked at in a cluster before a run, one concern a file; each check returns findings and raises nothing."""
