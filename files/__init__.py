"""For every other room: files written whole or not at all under safe names, read without running code, and logs."""
