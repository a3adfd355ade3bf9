"""What is kept (replay, rollout), what a row is (layouts), and how likely it is drawn (priorities)."""
