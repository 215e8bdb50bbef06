"""Reports that a person reads: one self-contained HTML page, without scripts, with pictures inside."""
