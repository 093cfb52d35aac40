"""What checkers of types say of programs that use the queue."""
