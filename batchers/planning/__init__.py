"""The planner: it decides by the costs of batches which waiting jobs run together, and when."""
