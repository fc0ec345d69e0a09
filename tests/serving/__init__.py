"""Applications that real servers serve, and clients that misbehave."""

#: What pg_stat_activity calls the applications' connections, and how many there may be.
NAME = "asyncsafe-serving"
CAP = 10
