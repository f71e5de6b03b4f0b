"""What several rooms of envpack, and mpiboot, need alike: places, trust, locks, mount tables, environments' prefixes.

Any room may import these modules; they import nothing but `envpack.errors`, as nodes load them from a slow file system.
"""
