"""The question decided on real weights and real data: arms, plan, runs and the frozen analysis of one study."""
