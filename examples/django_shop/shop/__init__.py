"""A shop: orders, and the receipts that are written for them in the background."""
