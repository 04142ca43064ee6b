"""Hosts and plugins that are not this project's, to try it among strangers."""
