"""What every room may use: files that are replaced in one step, checks of arguments, optional dependencies."""
