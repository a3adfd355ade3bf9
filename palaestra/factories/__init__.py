"""What must train to exist: behaviour policies, and the datasets that they log."""
