"""The presets: small differences of one base configuration (config/schema.py)."""
