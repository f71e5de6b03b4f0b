"""What runs inside the scheduler, the nannies and the workers."""
