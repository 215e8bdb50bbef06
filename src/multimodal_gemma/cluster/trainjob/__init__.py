"""Training as a TrainJob of Kubeflow Trainer: its specification, its life, and who follows it."""
