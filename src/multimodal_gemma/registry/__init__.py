"""MLflow: where runs and versions are recorded, and the gate that a champion has passed."""
