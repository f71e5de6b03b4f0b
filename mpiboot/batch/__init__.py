"""Small classes that submit a job, say its state and reason, and stop it."""
