"""The commands. Nothing else in the package imports click, and ``--help`` imports nothing else."""
