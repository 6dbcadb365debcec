"""What `unitsphere bench` lets take turns: our own work, whole, and that of peers."""
