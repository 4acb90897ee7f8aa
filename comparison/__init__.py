"""Setting runs side by side: per-image scores, arms and their pairing, intervals and tests, tables and the report."""
