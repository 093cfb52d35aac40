"""Words and decisions. Pure: no I/O, no clock, no randomness but what is passed in."""
