"""Running a compiled pipeline on this machine, and the report that it leaves."""
