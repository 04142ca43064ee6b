"""A plugin that fails when it is imported."""

raise RuntimeError("broken as soon as it is imported")
