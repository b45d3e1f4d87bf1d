"""The login node's side: Slurm's commands, and what they say of a run's jobs. Nothing here runs on a rank."""
