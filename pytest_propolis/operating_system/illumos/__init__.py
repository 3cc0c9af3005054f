"""illumos: binary procfs, process contracts, pfexec. Built from public headers and manuals; it has never run there."""
