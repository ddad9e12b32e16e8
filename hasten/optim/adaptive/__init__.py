"""Stand-alone update rules of the Adam kind."""
