"""What an experiment found: plain data, JSON in and out, text."""
