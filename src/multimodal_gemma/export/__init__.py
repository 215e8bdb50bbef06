"""What is shipped: stock weights, their adapter, a model card, a NOTICE and checksums."""
