"""To see what there is to see: receivers and pushes under way, with Prometheus watching, and plots of it."""
