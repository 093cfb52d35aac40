"""Doors: how programs come in. A door is a list of verbs, and a way to wait for their answers."""
