"""What an agent is: it reads, lets its runner work, commits."""
