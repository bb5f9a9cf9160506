"""Results as tables, JSON and pictures; nothing here computes an error."""
