"""Logs of others: Minari's folders, D4RL's HDF5 files, LeRobot's folders, as arrays; and making and writing such a log."""
