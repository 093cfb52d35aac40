"""How the tables of the shop came about."""
