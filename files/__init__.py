"""Writing and reading files for all other rooms: whole or not at all, under safe names, without running code."""
