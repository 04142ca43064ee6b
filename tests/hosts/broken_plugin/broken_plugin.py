"""A plugin that cannot even be imported."""

raise RuntimeError("broken as soon as it is imported")
