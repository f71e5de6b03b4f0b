"""Room of the protocols between a job's processes and its clients: files, sockets, environment variables.

Client, boot, agent, rank and preloads meet here, and do not import each other. It imports `common` and
`envpack.common`, but neither distributed nor cryptography.
"""
