"""The Kubernetes API: a way in, what is tried again, a watch, and what a pod says of itself."""
