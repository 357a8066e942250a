"""What notebooks 01 to 03 work out and show."""
