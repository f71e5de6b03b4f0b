"""What the processes of a job say to each other, and where: files, sockets, environment variables."""
