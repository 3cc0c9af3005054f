"""Programs in guests as nodes of a group, over the second serial port."""
