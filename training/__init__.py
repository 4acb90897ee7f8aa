"""Training: one loop over batches, both stages' losses, what a stage starts from and how its rate falls."""
