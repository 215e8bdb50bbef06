"""The pipeline on a cluster: what it needs, how it gets there, how it is followed."""
