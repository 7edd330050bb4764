"""What tests use of Ray beyond its public API: the titles of its processes.

Ray's public list of actors is served by the dashboard, which most clusters of tests do not start,
and it does not contain Ray's own processes. test_ray_internals.py checks each title.
"""

# Without these two, tests/faults.py finds no process to kill. A trial of Ray Tune:
TRIAL = "ray::ImplicitFunc"
# A worker of Ray Train:
TRAIN_WORKER = "ray::RayTrainWorker"

# After the head of a Ray is killed, its agents search for it for a minute before they end. Without
# these titles, tests that wait for the end of a Ray take a minute longer.
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
