"""Planning ahead: how long tests take, when the run will end, where templates are made, and which hosts are kept."""
