"""Room of the preloads: the modules that run inside the scheduler, the nannies and the workers.

distributed imports them by the names that `protocol.rank_environment` sets; no other room imports them. With `client`,
they are the only ones that import distributed.
"""
