"""An example of a plugin: the attack ``contrast`` and its preset."""
