"""The planner: which waiting jobs run together, and when, by what batches cost."""
