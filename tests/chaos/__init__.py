"""The chaos runner: real workers and producers, a nemesis, and a checker that compares what was said with what was done."""
