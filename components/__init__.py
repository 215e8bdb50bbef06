"""The steps of the pipelines as the KFP UI sees them: one folder each, nothing but wiring."""
