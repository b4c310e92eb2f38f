"""Who the receiver and the sender are, and how each proves it to the other."""
