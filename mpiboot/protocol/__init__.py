"""Room of what the processes of a job, and its clients, say to each other: files, sockets, environment variables.

Client, boot, agent, rank and preloads meet here, and do not import each other. It imports `common` and
`envpack.common`, but neither distributed nor cryptography.
"""
