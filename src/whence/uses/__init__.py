"""What people do with effects, one job a file."""
