"""Hosts and plugins by others, to test the project with them."""
