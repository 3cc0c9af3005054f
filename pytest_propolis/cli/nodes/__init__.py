"""Commands for programs that are nodes of a group."""
