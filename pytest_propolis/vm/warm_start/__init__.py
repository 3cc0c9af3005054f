"""From a configuration to a fork of a template, or to the reason why the VM boots."""
