"""What was recorded: kept in files while a program runs, merged, and written for people and tools."""
