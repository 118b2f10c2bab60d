"""How an output is made: a plan into a program, and a program into values."""
