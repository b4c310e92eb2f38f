"""The command line over the engine: options, messages and exit statuses, nothing else."""
