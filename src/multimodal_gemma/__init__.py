"""Multimodal Gemma: train, evaluate and ship small vision-language models on Kubeflow."""

__version__ = "0.1.0"
