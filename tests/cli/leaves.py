"""A module that ends the process when it is imported, as scripts without a guard do."""

import sys

sys.exit(3)
