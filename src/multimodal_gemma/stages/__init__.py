"""The verbs of the pipeline, one module each, each with one public `run`."""
