"""From published files to batches: sources, shards, conversations, benchmarks, images, tokens."""
