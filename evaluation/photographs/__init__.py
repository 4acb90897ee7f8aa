"""Single photographs of whatever size: from files to maps, scores and decisions, without labels or rows."""
