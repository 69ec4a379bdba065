"""Learning from an environment: who plays, what is kept of it, who learns from it, how it is evaluated."""
