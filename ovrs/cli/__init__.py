"""The command line: every command calls one library function."""
