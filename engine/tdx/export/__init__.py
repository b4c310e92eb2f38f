"""Getting measurements out of the process; sees nothing of the engine but its metrics."""
