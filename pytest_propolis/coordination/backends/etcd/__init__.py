"""etcd as a store through which nodes coordinate, over its JSON gateway."""
