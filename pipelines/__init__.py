"""The pipelines as they are compiled for Kubeflow, and run on a laptop from the same files."""
