"""Plugins of this project's own tests, which pytest wants to be named at the top."""

pytest_plugins = ["pytester"]
