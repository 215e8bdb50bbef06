"""Everything about a cluster that would stop a run after minutes or hours, found out in seconds."""
