"""Files <-> Image. What a file is, is decided by its content, never by its name."""
