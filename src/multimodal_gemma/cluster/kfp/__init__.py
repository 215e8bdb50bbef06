"""Everything that speaks to a KFP server: submit, follow, schedule."""
