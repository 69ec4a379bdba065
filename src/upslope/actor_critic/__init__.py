"""The second loop: methods that learn from stored transitions, of a replay buffer, of a log, or of both."""
