"""Moving bytes between files and sockets; the only part that handles payload."""
