"""Rules and storage that need less memory than Adam, and rules that see matrices."""
